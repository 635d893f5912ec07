"""Between a plan and optax: a schedule that counts updates becomes a recipe, a plan one of those.

A loop of one's own then changes in two places: the optimizer's learning rate is `to_optax(plan)`,
and the batch of each update has the size that the plan says.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from batchgrow.plan.curves import Recipe
from batchgrow.plan.plan import Schedule


def from_optax(
    schedule: optax.Schedule,
    *,
    batch_size: int,
    momentum: float,
    num_examples: int,
    num_updates: int,
) -> Recipe:
    """The recipe of a loop that ran `schedule` for `num_updates` of one batch size.

    >>> cosine = optax.cosine_decay_schedule(0.1, decay_steps=1000)
    >>> recipe = from_optax(
    ...     cosine, batch_size=32, momentum=0.9, num_examples=8000, num_updates=1000
    ... )
    >>> recipe.num_epochs, round(recipe.learning_rate_at(16_000), 4)  # half-way: update 500
    (4.0, 0.05)

    Args:
      schedule: from the number of updates to the learning rate. It is compiled, and run on the CPU:
        asking an accelerator would wait for the updates in its queue.
      batch_size: B0, which the schedule was tuned for.
      momentum: m0, likewise; b1 of Adam.
      num_examples: N, the size of the training set.
      num_updates: of the whole run.

    Raises:
      ValueError: as `Recipe`.
    """
    compiled = jax.jit(schedule)
    device = _cpu()

    def learning_rate(epoch: float) -> float:
        with jax.default_device(device):
            return float(compiled(epoch * num_examples / batch_size))

    num_epochs = num_updates * batch_size / num_examples
    return Recipe(batch_size, momentum, learning_rate, num_examples, num_epochs)


def to_optax(schedule: Schedule) -> optax.Schedule:
    """The plan's learning rate by the number of updates, for any optax optimizer.

    >>> from batchgrow import Recipe, curves, grow
    >>> recipe = Recipe(10, 0.9, curves.step(0.1, (1, 2), 0.5), num_examples=100, num_epochs=3)
    >>> plan = grow(recipe, max_batch_size=20)
    >>> [round(float(to_optax(plan)(count)), 3) for count in (0, 10, 14, 15, 19)]
    [0.1, 0.1, 0.1, 0.05, 0.05]

    After the last update it stays at that one's. All values are computed here, once, in tens of
    microseconds each.
    """
    rates = np.array([point.learning_rate for point in schedule.points()], np.float32)
    return lambda count: jnp.asarray(rates)[jnp.minimum(count, len(rates) - 1)]


def _cpu() -> Any:
    """None, for JAX's default, where JAX_PLATFORMS leaves the CPU out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
