"""Conversions between plans and optax schedules, which count updates.

A training loop that uses optax changes in two places: the learning rate of the optimizer becomes
`to_optax(plan)`, and the batch of each update has the size that the plan says.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from batchgrow.plan.curves import Curve
from batchgrow.plan.plan import FixedPlan, check_fixed
from batchgrow.plan.recipe import Recipe

CHUNK = 256  # Evaluations in one call of a compiled schedule.


def from_optax(
    schedule: optax.Schedule,
    *,
    batch_size: int,
    momentum: float,
    num_examples: int,
    num_updates: int,
    optimizer: str = "momentum",
    tokens_per_example: int | None = None,
    unit: str = "updates",
) -> Recipe:
    """Returns the recipe of a run that used `schedule` for `num_updates` of one batch size.

    Updates of a fixed number of tokens are updates of `batch_size` = tokens per update /
    tokens per example.

    >>> cosine = optax.cosine_decay_schedule(0.1, decay_steps=1000)
    >>> recipe = from_optax(
    ...     cosine, batch_size=32, momentum=0.9, num_examples=8000, num_updates=1000
    ... )
    >>> recipe.num_epochs, round(recipe.learning_rate_at(16_000), 4)  # half-way: update 500
    (4.0, 0.05)

    Args:
      schedule: takes the number of updates, or of tokens seen, and returns the learning rate. The
        number may be a fraction.
        It is compiled and runs on the CPU, because an accelerator would first finish the updates in
        its queue.
      batch_size: B0, for which the schedule was tuned.
      momentum: m0, for which the schedule was tuned. For Adam, b1.
      num_examples: N, the size of the training set.
      num_updates: the updates of the whole run.
      optimizer: for which the schedule was tuned, for example "adamw" (see `Recipe`).
      tokens_per_example: the length of a sequence, so that plans also count tokens.
      unit: what the schedule counts: "updates" of `batch_size` examples, or "tokens" seen.

    Raises:
      TypeError: if `schedule` is not a JAX function of a real number that returns a scalar.
      ValueError: as `Recipe`; for an unknown unit, or "tokens" without `tokens_per_example`.
    """
    if unit not in ("updates", "tokens"):
        raise ValueError(f"unknown unit {unit!r}; choose updates, tokens")
    if unit == "tokens" and tokens_per_example is None:
        raise ValueError("unit='tokens': set tokens_per_example, the length of a sequence")
    tokens = tokens_per_example if unit == "tokens" else None
    _check_schedule(schedule)
    compiled = jax.jit(jax.vmap(schedule))
    device = _cpu()

    def learning_rates(epochs: np.ndarray) -> np.ndarray:
        examples = epochs * num_examples
        counts = examples / batch_size if tokens is None else examples * tokens
        # One epoch alone is padded too: XLA rounds differently for other shapes.
        chunks = np.pad(counts, (0, -len(counts) % CHUNK)).reshape(-1, CHUNK)
        with jax.default_device(device):
            rates = [np.asarray(compiled(chunk), np.float64) for chunk in chunks]
        return np.concatenate([*rates, counts[:0]])[: len(counts)]

    def learning_rate(epoch: float) -> float:
        return float(learning_rates(np.array([epoch]))[0])

    num_epochs = num_updates * batch_size / num_examples
    curve = Curve(learning_rate, on_array=learning_rates)
    return Recipe(
        batch_size, momentum, curve, num_examples, num_epochs, optimizer, tokens_per_example
    )


def to_optax(plan: FixedPlan) -> optax.Schedule:
    """Returns the learning rate of the plan by the number of updates, for any optax optimizer.

    >>> from batchgrow import Recipe, curves, grow
    >>> recipe = Recipe(10, 0.9, curves.step(0.1, (1, 2), 0.5), num_examples=100, num_epochs=3)
    >>> plan = grow(recipe, max_batch_size=20)
    >>> [round(float(to_optax(plan)(count)), 3) for count in (0, 10, 14, 15, 19)]
    [0.1, 0.1, 0.1, 0.05, 0.05]

    All values are computed once, here, in float32. After the last update the learning rate stays
    that of the last update.

    Raises:
      TypeError: if `plan` is not a `FixedPlan`.
    """
    check_fixed(plan)
    rates = np.concatenate([plan.learning_rates(segment) for segment in plan.segments])
    return _Schedule(rates.astype(np.float32))


class _Schedule:
    """An optax schedule that looks up the learning rate of each update."""

    def __init__(self, learning_rates: np.ndarray) -> None:
        self._learning_rates = learning_rates

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        last = len(self._learning_rates) - 1
        return jnp.asarray(self._learning_rates)[jnp.minimum(count, last)]


def _check_schedule(schedule: Any) -> None:
    if not callable(schedule):
        raise TypeError(
            f"schedule={schedule!r} must be a function of the number of updates, such as "
            "optax.constant_schedule(0.1)"
        )
    if isinstance(schedule, _Schedule):
        raise TypeError(
            "schedule is a plan from to_optax, which has no single batch size: pass the schedule "
            "that the recipe had"
        )
    try:
        result = jax.eval_shape(schedule, 0.0)
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            "schedule cannot be traced by JAX because it needs a concrete number of updates, for "
            "example in a Python `if`: use jnp.where, or optax.join_schedules"
        ) from error
    except OverflowError as error:
        raise TypeError(
            "schedule has a whole number that int32 cannot hold: write it as a real number, for "
            "example 3e9"
        ) from error
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"schedule must accept a fractional number of updates, but it raises: {reason}"
        ) from error
    if getattr(result, "shape", None) != ():
        raise TypeError(f"schedule must return a scalar, not {result}")


def _cpu() -> Any:
    """Returns the CPU, or None, which is JAX's default device, if JAX_PLATFORMS excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
