"""Grow the batch size instead of decaying the learning rate (Smith et al. 2018, arXiv 1711.00489).

These parts are for training loops of your own. Each works without the others:

- `Recipe`, `curves`, `decay`, `grow`, `hybrid`, `Plan`, `FixedPlan`: turn a recipe into a plan.
- `follow`, `FollowPlan`, `from_run`: a plan that follows the measured gradient noise.
- `ramp`: a plan whose batch sizes you give; `from_megatron`, `to_megatron`: Megatron-LM's options.
- `from_optax`, `to_optax`: a recipe from an optax schedule, and a plan as an optax schedule.
- `Stream`: says which example is at each position of the training stream; `take` stacks them.
- `CompileAhead`: compiles the next batch size while the current one trains.
- `GhostBatchNorm`: batch normalization whose result does not depend on the batch size.

A name is imported when it is first used, so plans need NumPy only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgrow.compile import CompileAhead
    from batchgrow.data.stream import Stream, take
    from batchgrow.models.ghost_batch_norm import GhostBatchNorm
    from batchgrow.plan import curves
    from batchgrow.plan.follow import FollowPlan, follow, from_run
    from batchgrow.plan.growth import decay, grow, hybrid
    from batchgrow.plan.optax_schedules import from_optax, to_optax
    from batchgrow.plan.plan import FixedPlan, Plan, Point, Segment
    from batchgrow.plan.ramp import from_megatron, ramp, to_megatron
    from batchgrow.plan.recipe import Recipe

__all__ = [
    "CompileAhead",
    "FixedPlan",
    "FollowPlan",
    "GhostBatchNorm",
    "Plan",
    "Point",
    "Recipe",
    "Segment",
    "Stream",
    "curves",
    "decay",
    "follow",
    "from_megatron",
    "from_optax",
    "from_run",
    "grow",
    "hybrid",
    "ramp",
    "take",
    "to_megatron",
    "to_optax",
]

_MODULES = {
    "CompileAhead": "batchgrow.compile",
    "GhostBatchNorm": "batchgrow.models.ghost_batch_norm",
    "Stream": "batchgrow.data.stream",
    "from_optax": "batchgrow.plan.optax_schedules",
    "take": "batchgrow.data.stream",
    "to_optax": "batchgrow.plan.optax_schedules",
}  # The other public names are those of batchgrow.plan.


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'batchgrow' has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "batchgrow.plan")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
