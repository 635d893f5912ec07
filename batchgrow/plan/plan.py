"""A learning-rate recipe, turned into a plan that grows the batch size instead.

What the noise of batch gradients does to training is set by the noise scale (Smith & Le 2017;
Smith, Kindermans, Ying & Le 2018, Sec. 2-4), with N training examples and batch size B:

    g = learning_rate / (1 - momentum) * (N / B - 1)  ~  learning_rate * N / (B * (1 - momentum))

Decaying the learning rate anneals the noise; growing the batch does so too, in fewer updates. So a
plan is free to choose batch size and momentum, and the learning rate follows from the recipe's own
B0, m0 and curve:

    learning_rate(t) = curve(t) * (B(t) / B0) * (1 - m) / (1 - m0)

Every plan here is this one formula: `decay` keeps the batch size; `grow` and `hybrid` raise it
where the curve falls. What stays equal to the recipe's is the second, approximate form of g; both
are reported. Time is counted in examples seen: updates stop being comparable once the batch grows.

    >>> from batchgrow.plan.curves import step
    >>> recipe = Recipe(batch_size=128, momentum=0.9, learning_rate=step(0.1, (60, 120, 160), 0.2),
    ...                 num_examples=50_000, num_epochs=200)
    >>> print(grow(recipe, max_batch_size=5120).table())
    phase         epochs    examples  updates  batch  learning rate  momentum  noise scale
        0     0.00-60.00   3,000,064   23,438    128            0.1       0.9          391
        1   60.00-119.99   2,999,680    4,687    640            0.1       0.9         78.1
        2  119.99-159.99   2,000,000      625   3200            0.1       0.9         15.6
        3  159.99-200.03   2,001,920      391   5120          0.032       0.9         3.13
    total    0.00-200.03  10,001,664   29,141
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import Any, NamedTuple

from batchgrow.plan.curves import Descent, Recipe, check_momentum, check_whole


def noise_scale(learning_rate: float, batch_size: int, momentum: float, num_examples: int) -> float:
    """learning_rate * N / (B * (1 - momentum)), the form that plans keep."""
    return learning_rate * num_examples / (batch_size * (1 - momentum))


def noise_scale_exact(
    learning_rate: float, batch_size: int, momentum: float, num_examples: int
) -> float:
    """learning_rate / (1 - momentum) * (N / B - 1): 0 where B = N, and not meant for B beyond."""
    return learning_rate / (1 - momentum) * (num_examples / batch_size - 1)


def accumulation_epochs(batch_size: int, momentum: float, num_examples: int) -> float:
    """B / (N * (1 - momentum)): the epochs that momentum takes to forget old gradients."""
    return batch_size / (num_examples * (1 - momentum))


@dataclass(frozen=True)
class Phase:
    """A whole number of updates of one batch size.

    By the recipe a phase begins at its nominal start. The real one is within half a batch of that,
    because each phase starts where the last one ended. An update from before the nominal start has
    the learning rate from there, and so it is on the right side of a jump.

    Attributes:
      start_examples: examples seen before its first update.
      num_updates: at least one.
      batch_size: B, of all devices together.
      momentum: the plan's m.
      nominal_start_examples: where the recipe has it begin.
    """

    start_examples: int
    num_updates: int
    batch_size: int
    momentum: float
    nominal_start_examples: int

    @property
    def end_examples(self) -> int:
        """Examples seen after its last update."""
        return self.start_examples + self.num_updates * self.batch_size


class Point(NamedTuple):
    """What holds for one update, and where it stands.

    Attributes:
      examples_seen: before the update.
      updates: before the update.
      phase: index into `Schedule.phases`.
      epoch: before the update.
      batch_size: B, of all devices together.
      learning_rate: of the update.
      momentum: the plan's m.
      noise_scale: g in its second form, `learning_rate * N / (B * (1 - m))`.
      noise_scale_exact: g in its first form, with `N / B - 1`.
      accumulation_epochs: that momentum takes to forget old gradients, `B / (N * (1 - m))`.
    """

    examples_seen: int
    updates: int
    phase: int
    epoch: float
    batch_size: int
    learning_rate: float
    momentum: float
    noise_scale: float
    noise_scale_exact: float
    accumulation_epochs: float

    @property
    def positions(self) -> range:
        """The stream positions of the update's examples."""
        return range(self.examples_seen, self.examples_seen + self.batch_size)


@dataclass(frozen=True)
class Schedule:
    """A plan: phases that follow one another from example 0, and the learning rate at each update.

    Attributes:
      recipe: what it follows.
      phases: at least one.
      exponent: p in `learning_rate = curve * (B / B0)**p * (1 - m) / (1 - m0)`.
    """

    recipe: Recipe
    phases: tuple[Phase, ...]
    exponent: float = 1.0

    @property
    def num_updates(self) -> int:
        """Of the whole run."""
        return sum(phase.num_updates for phase in self.phases)

    @property
    def end_examples(self) -> int:
        """The examples seen by the whole run, within half a batch of the recipe's."""
        return self.phases[-1].end_examples

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Each batch size once, in the order in which they come."""
        return tuple(dict.fromkeys(phase.batch_size for phase in self.phases))

    @cached_property
    def _starts(self) -> list[int]:
        return [phase.start_examples for phase in self.phases]

    @cached_property
    def _updates_before(self) -> list[int]:
        return list(accumulate((phase.num_updates for phase in self.phases), initial=0))

    def at(self, examples_seen: int) -> Point:
        """The update that trains on example number `examples_seen` of the run, in O(log phases).

        Raises ValueError outside of range(end_examples).
        """
        if not 0 <= examples_seen < self.end_examples:
            raise ValueError(
                f"examples_seen={examples_seen} is outside of the schedule, which trains on "
                f"examples 0 to {self.end_examples - 1}"
            )
        index = bisect_right(self._starts, examples_seen) - 1
        phase = self.phases[index]
        updates, inside = divmod(examples_seen - phase.start_examples, phase.batch_size)
        start = examples_seen - inside
        learning_rate = self._learning_rate(phase, start)
        about = (phase.batch_size, phase.momentum, self.recipe.num_examples)
        return Point(
            examples_seen=start,
            updates=self._updates_before[index] + updates,
            phase=index,
            epoch=start / self.recipe.num_examples,
            batch_size=phase.batch_size,
            learning_rate=learning_rate,
            momentum=phase.momentum,
            noise_scale=noise_scale(learning_rate, *about),
            noise_scale_exact=noise_scale_exact(learning_rate, *about),
            accumulation_epochs=accumulation_epochs(*about),
        )

    def points(self, examples_seen: int = 0) -> Iterator[Point]:
        """Every update from this position on; ValueError if this is inside an update."""
        if examples_seen != self.end_examples:
            start = self.at(examples_seen).examples_seen
            if start != examples_seen:
                raise ValueError(
                    f"examples_seen={examples_seen} is inside an update, which starts at {start}: "
                    "was it reached with another plan?"
                )
        while examples_seen < self.end_examples:
            point = self.at(examples_seen)
            yield point
            examples_seen += point.batch_size

    def _learning_rate(self, phase: Phase, examples_seen: int) -> float:
        recipe = self.recipe
        on_recipe = recipe.learning_rate_at(max(examples_seen, phase.nominal_start_examples))
        growth = (phase.batch_size / recipe.batch_size) ** self.exponent
        momentum_ratio = (1 - phase.momentum) / (1 - recipe.momentum)
        return on_recipe * growth * momentum_ratio

    def to_dict(self, num_devices: int | None = None) -> dict[str, Any]:
        """The plan as plain numbers, ready for JSON; `_end` is at the last update of a phase.

        With num_devices each phase has a per_device_batch_size, a fraction if it does not divide.
        """
        phases = []
        for phase in self.phases:
            first, last = self.at(phase.start_examples), self.at(phase.end_examples - 1)
            row: dict[str, Any] = {
                "start_examples": phase.start_examples,
                "end_examples": phase.end_examples,
                "num_updates": phase.num_updates,
                "global_batch_size": phase.batch_size,
            }
            if num_devices is not None:
                whole, rest = divmod(phase.batch_size, num_devices)
                row["per_device_batch_size"] = phase.batch_size / num_devices if rest else whole
            row |= {
                "learning_rate_start": first.learning_rate,
                "learning_rate_end": last.learning_rate,
                "momentum": phase.momentum,
                "noise_scale_start": first.noise_scale,
                "noise_scale_end": last.noise_scale,
            }
            phases.append(row)
        return {
            "num_examples": self.recipe.num_examples,
            "num_epochs": self.recipe.num_epochs,
            "num_updates": self.num_updates,
            "phases": phases,
        }

    def table(self, num_devices: int | None = None) -> str:
        """The plan as text, one line a phase: rounded, at most 100 columns."""
        lines = []
        for index, phase in enumerate(self.to_dict(num_devices)["phases"]):
            extent = phase["start_examples"], phase["end_examples"], phase["num_updates"]
            line = {"phase": str(index), **self._extent(*extent)}
            line["batch"] = str(phase["global_batch_size"])
            if num_devices is not None:
                line["per device"] = f"{phase['per_device_batch_size']:.6g}"
            line["learning rate"] = _span(phase, "learning_rate")
            line["momentum"] = f"{phase['momentum']:g}"
            line["noise scale"] = _span(phase, "noise_scale")
            lines.append(line)
        total = {"phase": "total", **self._extent(0, self.end_examples, self.num_updates)}
        names = list(lines[0])
        cells = [names, *([line.get(name, "") for name in names] for line in [*lines, total])]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= 100 else " "
        return "\n".join(gap.join(map(str.rjust, row, widths)).rstrip() for row in cells)

    def _extent(self, start_examples: int, end_examples: int, num_updates: int) -> dict[str, str]:
        start, end = (n / self.recipe.num_examples for n in (start_examples, end_examples))
        return {
            "epochs": f"{start:.2f}-{end:.2f}",
            "examples": f"{end_examples - start_examples:,}",
            "updates": f"{num_updates:,}",
        }


def _span(phase: dict[str, Any], key: str) -> str:
    start, end = (
        f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"
        for value in (phase[f"{key}_start"], phase[f"{key}_end"])
    )
    return start if start == end else f"{start}..{end}"


def decay(recipe: Recipe, *, batch_multiple: int = 1) -> Schedule:
    """The recipe as it is: the batch size stays, the learning rate takes the whole decay."""
    return grow(recipe, num_growths=0, batch_multiple=batch_multiple)


def hybrid(recipe: Recipe, *, num_growths: int = 1, **growth: Any) -> Schedule:
    """`grow`, but only `num_growths` times; then the learning rate decays (Sec. 5.1)."""
    return grow(recipe, num_growths=num_growths, **growth)


def grow(
    recipe: Recipe,
    *,
    max_batch_size: float | None = None,
    initial_multiple: float = 1.0,
    momentum: float | None = None,
    exponent: float = 1.0,
    ladder: float = 2.0,
    batch_multiple: int = 1,
    num_growths: int | None = None,
) -> Schedule:
    """Grows the batch size where the recipe's learning rate falls, and keeps its noise scale.

    Where the curve jumps down, the batch grows by the same factor (Sec. 5.1). Where it descends
    smoothly, the batch climbs a ladder: it is multiplied by `ladder` each time the curve has fallen
    by that factor, and the learning rate carries what lies between the rungs.

    A fall is one of the highest learning rate still to come. So the batch never shrinks, a warm-up
    leaves it alone, and warm restarts hold it to what the highest later peak allows: the learning
    rate never exceeds its peak at the first batch size (but for the rounding of batches).

    Args:
      recipe: what to follow.
      max_batch_size: beyond it the learning rate takes the decay. It binds the first batch too,
        which fits a recipe to smaller hardware. By default a tenth of the training set, as the
        paper advises, or the first batch if that is larger; math.inf lifts it.
      initial_multiple: starts at so many times the batch size and learning rate (Sec. 5.2).
      momentum: the plan's m, by default the recipe's m0. The batch is multiplied by
        (1 - m0) / (1 - m), which leaves the learning rate as it is (Sec. 5.2).
      exponent: the power of B / B0 in the learning rate, 0 to 1. With 1 the noise scale is the
        recipe's; 1/2 is Seesaw's rule for Adam (arXiv 2510.14717): where the recipe divides the
        learning rate by a, the plan divides it by sqrt(a) and multiplies the batch by a.
      ladder: above 1; with math.inf the batch grows at jumps only.
      batch_multiple: batches are rounded to the nearest multiple of this (at least one, and down to
        fit max_batch_size), and the learning rate follows. Usually the ghost batch size.
      num_growths: grow at most so many times; by default without limit.

    Raises:
      ValueError: for an option out of its range.

    >>> from batchgrow.plan.curves import cosine
    >>> recipe = Recipe(256, 0.9, cosine(0.1, 90), num_examples=50_000, num_epochs=90)
    >>> [phase.batch_size for phase in grow(recipe, max_batch_size=1024).phases]
    [256, 512, 1024]
    """
    momentum = recipe.momentum if momentum is None else momentum
    _check_options(initial_multiple, momentum, exponent, ladder, batch_multiple, num_growths)
    first = recipe.batch_size * initial_multiple * (1 - recipe.momentum) / (1 - momentum)
    limit = _limit(recipe, max_batch_size, _nearest(first, batch_multiple), batch_multiple)
    batch_size = min(first, limit)  # Not rounded, so that factors multiply exactly.
    batch_sizes = {0: _nearest(batch_size, batch_multiple)}
    for position, factor in islice(_falls(recipe.descent, ladder), num_growths):
        if batch_size == limit:
            break
        batch_size = min(batch_size * factor, limit)
        batch_sizes[position] = _nearest(batch_size, batch_multiple)
    return Schedule(recipe, _whole_updates(batch_sizes, recipe, momentum), exponent)


def _check_options(
    initial_multiple: float,
    momentum: float,
    exponent: float,
    ladder: float,
    batch_multiple: int,
    num_growths: int | None,
) -> None:
    check_momentum(momentum)
    check_whole("batch_multiple", batch_multiple)
    if not 0 < initial_multiple < math.inf:
        raise ValueError(f"initial_multiple={initial_multiple} must be finite and above 0")
    if not 0 <= exponent <= 1:
        raise ValueError(f"exponent={exponent} must be between 0 and 1")
    if not ladder > 1:
        raise ValueError(f"ladder={ladder} must be above 1 (math.inf: grow at jumps only)")
    if num_growths is not None:
        check_whole("num_growths", num_growths, least=0)


def _nearest(batch_size: float, batch_multiple: int) -> int:
    return max(1, _round(batch_size / batch_multiple)) * batch_multiple


def _round(number: float) -> int:
    return math.floor(number + 0.5)


def _limit(recipe: Recipe, max_batch_size: float | None, first: int, batch_multiple: int) -> int:
    """The largest batch allowed, a multiple of batch_multiple."""
    if max_batch_size is None:
        return max(first, recipe.num_examples // 10 // batch_multiple * batch_multiple)
    if max_batch_size == math.inf:  # No batch needs to be larger than the run.
        return max(first, recipe.end_examples // batch_multiple * batch_multiple)
    if not max_batch_size >= batch_multiple:
        raise ValueError(
            f"max_batch_size={max_batch_size} is less than batch_multiple={batch_multiple}, the "
            f"smallest batch: set it to {batch_multiple} or more"
        )
    return int(max_batch_size // batch_multiple) * batch_multiple


def _falls(curve: Descent, ladder: float) -> Iterator[tuple[int, float]]:
    """Where the ceiling of the curve falls, and by what factor, in order; without end at a 0.

    `level` is how far the falls so far have brought it down; the ceiling is at or below that.
    """
    level = curve.ceiling(0)
    for start, end in pairwise((0, *curve.jumps, curve.positions[-1] + 1)):
        if start > 0:
            before, after = curve.ceiling(start - 1), curve.ceiling(start)
            if before > after:
                factor = before / after if after > 0 else math.inf
                level /= factor
                yield start, factor
        while curve.ceiling(end - 1) <= level / ladder:
            level /= ladder
            yield curve.falls_to(level), ladder


def _whole_updates(
    batch_sizes: dict[int, int], recipe: Recipe, momentum: float
) -> tuple[Phase, ...]:
    """Phases of whole updates, from the batch size asked for from each nominal position on.

    There is a new phase at each jump of the learning rate, too, so that each side gets its own. An
    interval too short for an update of its batch keeps the batch before it, or else vanishes.
    """
    jumps = set(recipe.descent.jumps)
    phases: list[Phase] = []
    position, asked, last_jump = 0, batch_sizes[0], 0
    for nominal_start, nominal_end in pairwise(sorted({*batch_sizes, *jumps, recipe.end_examples})):
        if nominal_start in jumps:
            last_jump = nominal_start
        batch_size = asked = batch_sizes.get(nominal_start, asked)
        if phases and nominal_end - position < batch_size / 2:
            batch_size = phases[-1].batch_size
        num_updates = _round((nominal_end - position) / batch_size)
        if num_updates < 1:
            continue
        last = phases[-1] if phases else None
        if last and last.batch_size == batch_size and last.nominal_start_examples >= last_jump:
            phases[-1] = replace(last, num_updates=last.num_updates + num_updates)
        else:
            phases.append(Phase(position, num_updates, batch_size, momentum, nominal_start))
        position = phases[-1].end_examples
    # A run shorter than half a batch still makes one update.
    return tuple(phases) or (Phase(0, 1, batch_sizes[0], momentum, 0),)
