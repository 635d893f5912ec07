"""Plans that grow the batch size where a recipe decays its learning rate.

>>> from batchgrow.plan.curves import step
>>> recipe = Recipe(batch_size=128, momentum=0.9, curve=step(0.1, (60, 120, 160), 0.2),
...                 num_examples=50_000, num_epochs=200)
>>> print(grow(recipe, max_batch_size=5120).table())
segment         epochs    examples  updates  batch  learning rate  momentum  noise scale
      0     0.00-60.00   3,000,064   23,438    128            0.1       0.9          391
      1   60.00-119.99   2,999,680    4,687    640            0.1       0.9         78.1
      2  119.99-159.99   2,000,000      625   3200            0.1       0.9         15.6
      3  159.99-200.03   2,001,920      391   5120          0.032       0.9         3.13
  total    0.00-200.03  10,001,664   29,141
largest batch bound by: max_batch_size=5120
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from batchgrow.plan.descent import Descent, find_descent
from batchgrow.plan.momentum import at_momentum, highest_momentum
from batchgrow.plan.plan import FixedPlan, Plan, Segment
from batchgrow.plan.recipe import (
    MOST_EXAMPLES,
    Momentum,
    Recipe,
    check_momentum,
    check_whole,
    momentum_at,
)

# A rung of a smooth curve has at least this number times 1 / (1 - m) updates, unless the user sets
# max_batch_size. With fewer, the momentum lags behind the curve. On a noisy quadratic with a cosine
# curve of 10 epochs, the final loss is 3.3 times the recipe's without this rule and 1.04 times with
# it.
RUNG_TIME_CONSTANTS = 20
# The user is warned of segments with fewer updates than this number / (1 - m).
FEW_TIME_CONSTANTS = 10


def decay(recipe: Recipe, *, batch_multiple: int = 1, exponent: float | None = None) -> FixedPlan:
    """Returns the recipe as a plan: the batch size is constant and the learning rate decays.

    The options are those of `grow`. The exponent counts where the batch is rounded to a multiple.
    """
    return grow(recipe, num_growths=0, batch_multiple=batch_multiple, exponent=exponent)


def hybrid(recipe: Recipe, *, num_growths: int = 1, **options: Any) -> FixedPlan:
    """Returns a plan that grows `num_growths` times and then decays the learning rate (Sec. 5.1).

    `options` are those of `grow`.
    """
    return grow(recipe, num_growths=num_growths, **options)


def grow(
    recipe: Recipe,
    *,
    max_batch_size: float | None = None,
    initial_multiple: float = 1.0,
    momentum: Momentum | None = None,
    exponent: float | None = None,
    ladder: float = 2.0,
    batch_multiple: int = 1,
    num_growths: int | None = None,
) -> FixedPlan:
    """Returns a plan that grows the batch where the learning rate of the recipe falls.

    The effective step stays that of the recipe: for SGD the noise scale. Where the curve jumps
    down, the batch grows by the same factor (Smith et al. 2018, Sec. 5.1). Where the curve
    decreases smoothly or in jumps by less than sqrt(ladder), the batch is multiplied by `ladder`
    each time the curve has decreased by that factor. In between, the learning rate decays.

    At each time the plan considers the highest learning rate from then on. So the batch never
    shrinks, a warm-up does not change it, and a warm restart limits it to what the highest later
    peak allows. The learning rate never exceeds its peak at the first batch size, except for the
    rounding of batches.

    Args:
      recipe: the recipe to follow.
      max_batch_size: the largest batch size. At this size the learning rate decays instead. It
        limits the first batch too, which fits a recipe to smaller hardware. The default is a tenth
        of the training set, as the paper advises, or the first batch if that is larger; and where
        the curve is smooth, each rung of the ladder must have 20 / (1 - m) updates. math.inf
        removes both limits up to the size of the training set.
      initial_multiple: the factor of the first batch size (Sec. 5.2). The learning rate follows.
      momentum: m of the plan, by default m0 of the recipe. If the momentum of the optimizer sums
        gradients, the batch size is multiplied by (1 - m0) / (1 - m), which with exponent 1 leaves
        the learning rate unchanged (Sec. 5.2). If it averages them, as Adam's b1, nothing else
        changes. A function of the epoch is a momentum that changes during the run: where it rises,
        the batch grows by the same factor.
      exponent: the power of B / B0 in the learning rate, 0 to 1; by default that of the optimizer:
        1 for SGD and momentum, 1/2 for Adam (see `batchgrow.plan.coupling`). 1/2 is also Seesaw's
        rule (arXiv 2510.14717): where the recipe divides the learning rate by a, the plan divides
        it by sqrt(a) and multiplies the batch size by a.
      ladder: a number above 1. With math.inf the batch grows at jumps only, and at every jump.
      batch_multiple: batch sizes are rounded to the nearest multiple of this number, and down to
        fit `max_batch_size`. The learning rate follows. Usually the ghost batch size.
      num_growths: the largest number of growths, by default unlimited. A fall that rounding turns
        into no growth does not count.

    Raises:
      TypeError: if `recipe` is not a `Recipe`.
      ValueError: if an option is outside its range, if the curve is 0 everywhere, or if the batch
        changes and the optimizer has no default exponent.

    >>> from batchgrow.plan.curves import cosine
    >>> recipe = Recipe(256, 0.9, cosine(0.1, 90), num_examples=50_000, num_epochs=90)
    >>> [segment.batch_size for segment in grow(recipe, max_batch_size=1024).segments]
    [256, 512, 1024]
    """
    check_recipe(recipe)
    momentum = recipe.momentum if momentum is None else momentum
    check_momentum(momentum, recipe.optimizer)
    _check_options(initial_multiple, ladder, batch_multiple, num_growths)
    followed, gain = at_momentum(recipe, momentum)
    first = recipe.batch_size * initial_multiple * gain
    if first > MOST_EXAMPLES:
        raise ValueError(
            f"the first batch size is {first:g}, with initial_multiple={initial_multiple:g}; it "
            f"must be at most {MOST_EXAMPLES:,}: use a smaller initial_multiple or momentum"
        )
    limit = batch_limit(recipe, max_batch_size, nearest(first, batch_multiple), batch_multiple)
    batch_size = min(first, limit)  # Not rounded, so that factors multiply exactly.
    batch_sizes = {0: nearest(batch_size, batch_multiple)}
    bound = _limit_rule(max_batch_size) if first > limit else ""
    descent, highest = find_descent(followed), highest_momentum(recipe, momentum)
    for fall in _falls(followed, descent, ladder):
        if len(batch_sizes) - 1 == num_growths:
            bound = bound or ("" if num_growths == 0 else f"num_growths={num_growths}")
            break
        if batch_size * fall.factor > limit:
            bound = _limit_rule(max_batch_size)
        if batch_size == limit:
            break
        grown = min(batch_size * fall.factor, limit)
        if max_batch_size is None and fall.rung_examples * (1 - highest) < (
            RUNG_TIME_CONSTANTS * grown
        ):
            bound = f"{RUNG_TIME_CONSTANTS}/(1 - momentum) updates in each rung of the curve"
            continue
        batch_size = grown
        if nearest(batch_size, batch_multiple) != list(batch_sizes.values())[-1]:
            batch_sizes[fall.position] = nearest(batch_size, batch_multiple)
    changes = set(batch_sizes.values()) != {recipe.batch_size}
    segments = make_segments(batch_sizes, recipe, descent.jumps, momentum)
    exponent = check_exponent(recipe, exponent, changes)
    largest, wanted = max(segment.batch_size for segment in segments), batch_sizes.values()
    left_out = [size for size in wanted if size > largest]
    if left_out:
        bound = f"the end of the run, which has no room for an update of {min(left_out)} examples"
    warnings = check_segments(recipe, segments)
    if num_growths != 0 and descent.ceilings[-1] == descent.ceilings[0]:
        warnings = (
            "the learning rate never falls, so the batch does not grow; take a curve that falls, "
            "or a plan whose batch sizes you give yourself (`ramp`)",
            *warnings,
        )
    elif (
        num_growths != 0
        and len(batch_sizes) == 1
        and bound
        and max_batch_size is None
        and recipe.batch_size <= recipe.num_examples
    ):
        warnings = (
            f"the batch does not grow: it is limited by {bound}; set max_batch_size to choose the "
            "limit yourself, or train for more epochs",
            *warnings,
        )
    warnings = (*check_first(min(first, limit), batch_sizes[0], batch_multiple), *warnings)
    curve = momentum if callable(momentum) else None
    return FixedPlan(recipe, segments, exponent, bound, warnings, curve)


def _check_options(
    initial_multiple: float, ladder: float, batch_multiple: int, num_growths: int | None
) -> None:
    check_whole("batch_multiple", batch_multiple)
    if not 0 < initial_multiple < math.inf:
        raise ValueError(f"initial_multiple={initial_multiple} must be finite and above 0")
    if not ladder > 1:
        raise ValueError(f"ladder={ladder} must be above 1 (math.inf: grow at jumps only)")
    if num_growths is not None:
        check_whole("num_growths", num_growths, least=0)


def check_segments(recipe: Recipe, segments: Sequence[Segment]) -> tuple[str, ...]:
    """Returns one line for each thing that makes a plan differ from its recipe in practice."""
    most = max(segment.batch_size for segment in segments)
    return (*check_short(recipe, segments), *check_largest(recipe, most))


def check_first(wanted: float, batch_size: int, batch_multiple: int) -> tuple[str, ...]:
    """Returns one line if rounding changes the first batch size, `wanted`."""
    if abs(batch_size - wanted) < 1:
        return ()
    return (
        f"the first batch size {wanted:g} is rounded to {batch_size}, a multiple of "
        f"{batch_multiple}; the learning rate follows",
    )


def check_largest(recipe: Recipe, most: int) -> tuple[str, ...]:
    """Returns one line if the largest batch size is more than the training set."""
    if most <= recipe.num_examples:
        return ()
    field = "max_batch_size" if recipe.batch_size <= recipe.num_examples else "batch_size"
    return (
        f"the largest batch size {most} is more than the training set of {recipe.num_examples} "
        f"examples; use a smaller {field}",
    )


def check_short(recipe: Recipe, segments: Sequence[Segment]) -> tuple[str, ...]:
    """Returns one line if segments have few updates."""
    usual = recipe.batch_size / (1 - highest_momentum(recipe, recipe.momentum))
    larger = [s for s in segments if s.batch_size / (1 - s.momentum) > usual]
    short = [s for s in larger if s.num_updates * (1 - s.momentum) < FEW_TIME_CONSTANTS]
    if not short:
        return ()
    worst = min(short, key=lambda segment: segment.num_updates * (1 - segment.momentum))
    of_all = f"{len(short)} of {len(segments)} segments {'is' if len(short) == 1 else 'are'}"
    return (
        f"{of_all} short: {worst.num_updates} updates of {worst.batch_size} examples are "
        f"{worst.num_updates * (1 - worst.momentum):.2g} times 1 / (1 - momentum), and fewer "
        f"than {FEW_TIME_CONSTANTS} times are too few for the momentum {worst.momentum:g} to "
        "forget earlier gradients; use a smaller max_batch_size or momentum, or more epochs",
    )


def check_recipe(recipe: Any) -> None:
    """Raises a TypeError unless `recipe` is a `Recipe`."""
    if not isinstance(recipe, Recipe):
        hint = ": pass plan.recipe" if isinstance(recipe, Plan) else ""
        raise TypeError(f"recipe must be a batchgrow.Recipe, not a {type(recipe).__name__}{hint}")


def check_exponent(recipe: Recipe, exponent: float | None, changes: bool) -> float:
    """Returns the exponent, by default that of the optimizer.

    Args:
      recipe: the recipe of the plan.
      exponent: the given exponent, or None.
      changes: whether any batch size differs from that of the recipe.

    Raises:
      ValueError: if it is outside of 0 to 1, or missing and the optimizer has none.
    """
    if exponent is None:
        exponent = recipe.coupling.exponent
        if exponent is None and not changes:
            return 1.0
    if exponent is None:
        raise ValueError(
            f"exponent: the optimizer {recipe.optimizer!r} has no rule for how the learning rate "
            "follows the batch size; set the exponent, for example 1 or 0.5"
        )
    if not 0 <= exponent <= 1:
        raise ValueError(f"exponent={exponent} must be between 0 and 1")
    return exponent


def nearest(batch_size: float, batch_multiple: int) -> int:
    """Returns the multiple of `batch_multiple` nearest to `batch_size`, at least one multiple."""
    return max(1, _round(batch_size / batch_multiple)) * batch_multiple


def _round(number: float) -> int:
    return math.floor(number + 0.5)


def batch_limit(
    recipe: Recipe, max_batch_size: float | None, first: int, batch_multiple: int
) -> int:
    """Returns the largest batch size allowed, a multiple of `batch_multiple`.

    Args:
      recipe: its training set has the default limit, a tenth of it.
      max_batch_size: the limit; None for the default, infinity for the whole training set.
      first: the first batch size. The limit is at least this, unless a number is given.
      batch_multiple: divides each batch size.

    Raises:
      ValueError: if `max_batch_size` is less than `batch_multiple`.
    """
    if max_batch_size is None:
        return max(first, recipe.num_examples // 10 // batch_multiple * batch_multiple)
    if max_batch_size == math.inf:  # Beyond the training set or the run there is no noise left.
        most = min(recipe.num_examples, recipe.end_examples)
        return max(first, most // batch_multiple * batch_multiple)
    if not max_batch_size >= batch_multiple:
        raise ValueError(
            f"max_batch_size={max_batch_size} is less than batch_multiple={batch_multiple}, the "
            f"smallest batch: set it to {batch_multiple} or more"
        )
    return int(max_batch_size // batch_multiple) * batch_multiple


def _limit_rule(max_batch_size: float | None) -> str:
    if max_batch_size is None:
        return "a tenth of the training set"
    return (
        "the training set" if max_batch_size == math.inf else f"max_batch_size={max_batch_size:g}"
    )


class Fall(NamedTuple):
    """A place where the batch may grow.

    Attributes:
      position: the first example of the lower learning rate.
      factor: the factor by which the highest learning rate from here on decreases.
      rung_examples: examples until a smooth curve has fallen by the next factor; math.inf at a
        jump.
    """

    position: int
    factor: float
    rung_examples: float


def _falls(recipe: Recipe, descent: Descent, ladder: float) -> list[Fall]:
    """Returns where the ceiling falls, and by what factor, in order.

    `level` is the product of the falls so far. The ceiling is at or below it. Jumps by less than
    sqrt(ladder) count as a part of the smooth curve.
    """
    falls: list[Fall] = []
    level = descent.ceiling(0)
    lowest = level / (2 * recipe.end_examples)  # Where no batch is small enough to grow.
    smallest = 1.0 if ladder == math.inf else math.sqrt(ladder)
    for start, end in pairwise((0, *descent.jumps, recipe.end_examples)):
        before, after = descent.ceiling(max(0, start - 1)), descent.ceiling(start)
        if before > after:
            factor = before / after if after > 0 else math.inf
            if factor >= smallest:
                level /= factor
                falls.append(Fall(start, factor, math.inf))
        while ladder < math.inf and descent.ceiling(end - 1) <= level / ladder > lowest:
            level /= ladder
            falls.append(Fall(_falls_to(recipe, descent, level), ladder, 0))
    for index, fall in enumerate(falls):
        if fall.rung_examples == 0:
            is_last = index == len(falls) - 1
            end = recipe.end_examples if is_last else falls[index + 1].position
            falls[index] = fall._replace(rung_examples=end - fall.position)
    return falls


def _falls_to(recipe: Recipe, descent: Descent, level: float) -> int:
    """Returns the first example from which on the learning rate is at most `level`."""
    index = int(np.searchsorted(-descent.ceilings, -level))
    if index == 0:
        return 0
    between = range(int(descent.positions[index - 1]) + 1, int(descent.positions[index]))
    return between.start + bisect_left(between, -level, key=lambda n: -recipe.learning_rate_at(n))


def make_segments(
    batch_sizes: dict[int, int], recipe: Recipe, jumps: tuple[int, ...], momentum: Momentum
) -> tuple[Segment, ...]:
    """Returns segments of whole updates. `batch_sizes` maps nominal starts to batch sizes.

    A new segment starts at each jump of the learning rate too, so that both sides have their own
    learning rate. An interval that is too short for an update of its batch size takes the batch
    size before it. If it is too short for that too, it has no segment.
    """
    segments: list[Segment] = []
    position, wanted, last_jump = 0, batch_sizes[0], 0
    for nominal_start, nominal_end in pairwise(sorted({*batch_sizes, *jumps, recipe.end_examples})):
        if nominal_start in jumps:
            last_jump = nominal_start
        batch_size = wanted = batch_sizes.get(nominal_start, wanted)
        if segments and nominal_end - position < batch_size / 2:
            batch_size = segments[-1].batch_size
        num_updates = _round((nominal_end - position) / batch_size)
        if num_updates < 1:
            continue
        last = segments[-1] if segments else None
        if last and last.batch_size == batch_size and last.nominal_start_examples >= last_jump:
            segments[-1] = last._replace(num_updates=last.num_updates + num_updates)
        else:
            first = float(momentum_at(momentum, nominal_start / recipe.num_examples))
            segments.append(Segment(position, num_updates, batch_size, first, nominal_start))
        position = segments[-1].end_examples
    # A run shorter than half a batch still makes one update.
    first = float(momentum_at(momentum, 0.0))
    return tuple(segments) or (Segment(0, 1, batch_sizes[0], first, 0),)
