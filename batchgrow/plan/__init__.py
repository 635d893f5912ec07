"""Recipes and plans: the batch size, learning rate and momentum of each update. Needs NumPy only.

`batchgrow.plan.optax_schedules` is not imported here, because it needs JAX and optax.
"""

from batchgrow.plan.coupling import noise_scale
from batchgrow.plan.follow import FollowPlan, follow, from_run, replay
from batchgrow.plan.growth import decay, grow, hybrid
from batchgrow.plan.plan import FixedPlan, Plan, Point, Segment
from batchgrow.plan.ramp import from_megatron, ramp, to_megatron
from batchgrow.plan.recipe import Recipe

__all__ = [
    "FixedPlan",
    "FollowPlan",
    "Plan",
    "Point",
    "Recipe",
    "Segment",
    "decay",
    "follow",
    "from_megatron",
    "from_run",
    "grow",
    "hybrid",
    "noise_scale",
    "ramp",
    "replay",
    "to_megatron",
]
