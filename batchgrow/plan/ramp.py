"""Plans whose batch sizes are given: ramps, critical-batch warm-up, late switches, stages.

>>> from batchgrow.plan.curves import constant
>>> recipe = Recipe(64, 0.9, constant(0.1), num_examples=10_000, num_epochs=2)
>>> plan = ramp(recipe, [(0, 16), (4_000, 32), (12_000, 64)])
>>> [(segment.batch_size, segment.num_updates) for segment in plan.segments]
[(16, 250), (32, 250), (64, 125)]

`grow` grows the batch where the learning rate of the recipe falls. Here a table or a curve gives
the batch sizes. The learning rate is the recipe's own, or follows the batch size by an exponent.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import SupportsFloat

from batchgrow.plan.descent import find_descent
from batchgrow.plan.growth import (
    check_exponent,
    check_recipe,
    check_segments,
    make_segments,
    nearest,
)
from batchgrow.plan.plan import FixedPlan
from batchgrow.plan.recipe import Momentum, Recipe, check_momentum, check_whole
from batchgrow.plan.segments import Segment

# (first example, batch size) of each stage, in order; the first is at example 0.
Stages = Sequence[tuple[int, int]]
BatchCurve = Callable[[float], SupportsFloat]  # From the epoch to the batch size.
NUM_SAMPLES = 4096
SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def ramp(
    recipe: Recipe,
    batches: Stages | BatchCurve,
    *,
    exponent: float | None = 0.0,
    momentum: Momentum | None = None,
    ladder: float = 2.0,
    batch_multiple: int = 1,
) -> FixedPlan:
    """Returns a plan with the given batch sizes. The batch may also shrink.

    Args:
      recipe: the curve of the learning rate, and the batch size that it was found for.
      batches: a table of (first example, batch size); or the batch size as a function of the epoch.
        A function is followed in steps: the batch is the highest of recipe.batch_size * ladder^k,
        for whole k of any sign, that is at most the function.
      exponent: p in learning rate = curve * (B / recipe.batch_size)^p. With 0 the learning rate
        does not follow the batch. None: the optimizer's exponent, which keeps the effective step.
      momentum: m of the plan, by default that of the recipe; a number or a function of the epoch.
      ladder: a number above 1, for a function.
      batch_multiple: batch sizes are rounded to the nearest multiple of this number.

    Raises:
      TypeError: if `recipe` is not a `Recipe`.
      ValueError: for a table that is not in order or does not start at 0, a batch size below 1, or
        another option outside of its range.
    """
    check_recipe(recipe)
    check_whole("batch_multiple", batch_multiple)
    momentum = recipe.momentum if momentum is None else momentum
    check_momentum(momentum, recipe.optimizer)
    if not 1 < ladder < math.inf:
        raise ValueError(f"ladder={ladder} must be a finite number above 1")
    stages = _stages_of(recipe, batches, ladder) if callable(batches) else check_stages(batches)
    sizes: dict[int, int] = {}
    for position, size in stages:
        size = nearest(size, batch_multiple)
        if position < recipe.end_examples and [size] != list(sizes.values())[-1:]:
            sizes[position] = size
    changes = set(sizes.values()) != {recipe.batch_size}
    segments = make_segments(sizes, recipe, find_descent(recipe).jumps, momentum)
    exponent = check_exponent(recipe, exponent, changes)
    warnings = (
        *_check_rounding(stages, batch_multiple),
        *_check_room(sizes, segments),
        *check_segments(recipe, segments),
    )
    curve = momentum if callable(momentum) else None
    return FixedPlan(recipe, segments, exponent, "", warnings, curve)


def _check_rounding(stages: Stages, batch_multiple: int) -> tuple[str, ...]:
    """Returns one line if rounding changes batch sizes. It names the first of them."""
    pairs = ((size, nearest(size, batch_multiple)) for _, size in stages)
    size, rounded = next((pair for pair in pairs if pair[0] != pair[1]), (0, 0))
    if not size:
        return ()
    return (f"the batch size {size} is rounded to {rounded}, a multiple of {batch_multiple}",)


def _check_room(sizes: Mapping[int, int], segments: Sequence[Segment]) -> tuple[str, ...]:
    """Returns one line if stages are too short for an update. It names the first of them.

    Args:
      sizes: the batch size of each stage, by its first example.
    """
    starts = [segment.nominal_start_examples for segment in segments]
    for position, size in sizes.items():
        if segments[bisect_right(starts, position) - 1].batch_size != size:
            return (
                f"the batch size {size} from example {position} on has no room for an update; the "
                "batch size before it stays",
            )
    return ()


def check_stages(stages: Stages) -> tuple[tuple[int, int], ...]:
    """Returns the table as tuples.

    Raises:
      ValueError: unless it starts at example 0 and its positions rise.
    """
    found = tuple((position, size) for position, size in stages)
    if not found or found[0][0] != 0:
        raise ValueError(f"batches={list(found)[:1]}: the first stage must start at example 0")
    for (earlier, _), (later, _) in pairwise(found):
        if later <= earlier:
            raise ValueError(f"batches: the stage at {later} must be after that at {earlier}")
    for position, size in found:
        check_whole(f"batches: the stage at {position}: batch size", size)
        check_whole("batches: the position", position, least=0)
    return found


def _stages_of(recipe: Recipe, curve: BatchCurve, ladder: float) -> list[tuple[int, int]]:
    """Returns the rungs of a function: samples it, and bisects where two samples differ."""

    def rung(position: int) -> int:
        size = float(curve(position / recipe.num_examples))
        if not 0 < size < math.inf:
            raise ValueError(
                f"batches: the batch size is {size} at epoch {position / recipe.num_examples:g}; "
                "it must be finite and above 0"
            )
        return math.floor(math.log(size / recipe.batch_size) / math.log(ladder) + 1e-9)

    last = recipe.end_examples - 1
    num_steps = max(1, min(NUM_SAMPLES, last))
    samples = sorted({last * step // num_steps for step in range(num_steps + 1)})
    changes = [(0, rung(0))]
    for low, high in pairwise(samples):
        before, after = rung(low), rung(high)
        if before != after:
            first = bisect_left(range(low, high), True, key=lambda n: rung(n) != before)
            changes.append((low + first, after))
    return [(n, max(1, round(recipe.batch_size * ladder**k))) for n, k in changes]


# --- Megatron-LM's ways to write a ramp.


def from_megatron(text: str, global_batch_size: int | None = None) -> tuple[tuple[int, int], ...]:
    """Returns the table of a Megatron-LM option.

    >>> from_megatron("16 8 3000", global_batch_size=40)
    ((0, 16), (1000, 24), (2000, 32), (3000, 40))
    >>> from_megatron("0:768 250B:1536 500B:3072")
    ((0, 768), (250000000000, 1536), (500000000000, 3072))

    Args:
      text: the three numbers of --rampup-batch-size: start, increment, samples of the ramp; or the
        pairs of --step-batch-size-schedule, here with examples before the colon.
      global_batch_size: the last batch size, for --rampup-batch-size.

    Raises:
      ValueError: if the text is neither.
    """
    parts = text.replace(",", " ").split()
    try:
        if parts and all(":" in part for part in parts):
            pairs = (part.split(":") for part in parts)
            stages = [(_count(position), int(size)) for position, size in pairs]
        else:
            stages = []
            start, increment, samples = map(_count, parts)
    except ValueError:
        raise ValueError(
            f"batches {text!r}: write 'START INCREMENT SAMPLES', or 'EXAMPLE:BATCH ...' with the "
            "suffixes K, M, B and T"
        ) from None
    if stages:
        return check_stages(stages)
    if global_batch_size is None:
        raise ValueError(f"batches {text!r}: the last batch size is needed too")
    whole, rest = divmod(global_batch_size - start, increment) if increment > 0 else (-1, 0)
    if rest or whole < 0:
        raise ValueError(
            f"batches {text!r}: the increment must be a positive divisor of {global_batch_size} - "
            f"{start}"
        )
    if whole == 0:
        return ((0, start),)
    # Megatron-LM adds floor(consumed samples / (samples / increments)) increments.
    starts = [math.ceil(step * samples / whole) for step in range(whole + 1)]
    return check_stages([(n, start + step * increment) for step, n in enumerate(starts)])


def to_megatron(stages: Stages) -> str:
    """Returns a table as the value of --rampup-batch-size where possible, else of the other option.

    >>> to_megatron(((0, 16), (1000, 24), (2000, 32), (3000, 40)))
    '16 8 3000'
    >>> to_megatron(((0, 768), (250_000, 1536), (300_000, 3072)))
    '0:768 250K:1536 300K:3072'

    The last batch size of the first form is --global-batch-size.
    """
    stages = check_stages(stages)
    if len(stages) > 1:
        (_, start), (_, second) = stages[:2]
        text = f"{start} {second - start} {stages[-1][0]}"
        try:
            if from_megatron(text, stages[-1][1]) == stages:
                return text
        except ValueError:
            pass
    return " ".join(f"{_short(position)}:{size}" for position, size in stages)


def _count(text: str) -> int:
    number, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    count = float(number) * factor
    if not math.isfinite(count) or count != int(count):
        raise ValueError(f"{text} is not a whole number")
    return int(count)


def _short(count: int) -> str:
    for suffix, factor in reversed(SUFFIXES.items()):
        if count and count % factor == 0:
            return f"{count // factor}{suffix}"
    return str(count)
