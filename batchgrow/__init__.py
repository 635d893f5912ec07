"""Grow the batch instead of decaying the learning rate (Smith et al. 2018, arXiv 1711.00489).

The parts that a training loop of one's own needs; each works without the others:

- `Recipe`, `decay`, `grow`, `hybrid`, `Schedule`, and `curves`: from a recipe to a plan.
- `from_optax`, `to_optax`: the same with optax schedules, which count updates.
- `Stream`: which example stands at each position of the training stream; `take` stacks them.
- `CompileAhead`: the next batch size compiles while the current one trains.
- `GhostBatchNorm`: batch norm that does not notice the batch size.
"""

from etils import epy as _epy

# Imported when first used: a plan or a report needs no jax.
with _epy.lazy_api_imports(globals()):
    from batchgrow import curves
    from batchgrow.plan.curves import Recipe
    from batchgrow.data.stream import Stream, take
    from batchgrow.compile import CompileAhead
    from batchgrow.models.ghost_batch_norm import GhostBatchNorm
    from batchgrow.plan.optax_schedules import from_optax, to_optax
    from batchgrow.plan.plan import Phase, Point, Schedule, decay, grow, hybrid

__all__ = [
    "CompileAhead",
    "GhostBatchNorm",
    "Phase",
    "Point",
    "Recipe",
    "Schedule",
    "Stream",
    "curves",
    "decay",
    "from_optax",
    "grow",
    "hybrid",
    "take",
    "to_optax",
]
