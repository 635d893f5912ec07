"""Plans: which batch size, learning rate and momentum each update of a run has.

A plan chooses the batch size B and the momentum m. The learning rate follows from the recipe's own
batch size B0, momentum m0 and curve, so that the effective step stays the recipe's:

    learning_rate(t) = curve(t) * (B(t) / B0)**p * gain(m0(t)) / gain(m(t))

For SGD with momentum p = 1 and gain(m) = 1 / (1 - m), which keeps the noise scale. For Adam p = 1/2
and gain = 1 (see `batchgrow.plan.coupling`). An update takes the curve at the mean position of the
updates of the recipe that it replaces.

Time is counted in examples seen, because updates of different batch sizes are not comparable. A run
is a sequence of segments. Each is a whole number of updates of one batch size. `decay`, `grow` and
`hybrid` return a `FixedPlan`, whose segments are known in advance. Another `Plan` may decide each
segment when the one before it has ended, from what the run has measured until then.
"""

import abc
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from batchgrow.plan import describe
from batchgrow.plan.curves import LearningRateCurve
from batchgrow.plan.recipe import Recipe, accumulation_epochs, momentum_at, noise_scale_exact
from batchgrow.plan.segments import Point, Segment


class Plan(abc.ABC):
    """Decides the segments of a run one after another.

    A plan has no state: the run passes `history`, the segments that it has begun, in order. The
    last of them is the current one. Every method must depend on its arguments alone, so that a
    resumed run and all processes of a run decide the same.

    Attributes:
      recipe: what the plan follows.
      exponent: p in `learning_rate = curve * (B / B0)**p * gain(m0) / gain(m)`. With 0 the
        learning rate does not depend on the batch size.
    """

    recipe: Recipe
    exponent: float
    momentum_curve: LearningRateCurve | None = None  # by the epoch; None: that of each segment
    bound: str = ""  # The rule that limits the largest batch size; "" if nothing does.
    warnings: tuple[str, ...] = ()  # What makes the plan differ from the recipe in practice.

    @property
    def end_examples(self) -> int:
        """Examples seen at the end of the run, as far as this is known: within half a batch."""
        return self.recipe.end_examples

    @abc.abstractmethod
    def next(self, history: Sequence[Segment], measured: Mapping[str, float]) -> Segment | None:
        """Returns the segment after those of `history`, or None at the end of the run.

        Args:
          history: the segments so far, all of them complete.
          measured: the newest training metrics of the run. They are equal on all processes and
            after a resume. Empty before the first.
        """

    @abc.abstractmethod
    def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]:
        """Returns all segments that are decided: `history` and the segments certain to follow."""

    @abc.abstractmethod
    def batch_sizes(self, history: Sequence[Segment] = ()) -> tuple[int, ...]:
        """Returns each batch size that segments after `history` may have, the nearest first.

        The run compiles these ahead of time.
        """

    def segment_points(
        self, history: Sequence[Segment], examples_seen: int | None = None
    ) -> Iterator[Point]:
        """Yields the updates of the last segment of `history`.

        Args:
          history: the segments so far, the current one last.
          examples_seen: where to begin, by default at the start of the segment.

        Raises:
          ValueError: if `examples_seen` is outside of the segment or inside an update.
        """
        segment, index = history[-1], len(history) - 1
        start = segment.start_examples if examples_seen is None else examples_seen
        first, inside = divmod(start - segment.start_examples, segment.batch_size)
        if not 0 <= first <= segment.num_updates or (first == segment.num_updates and inside):
            raise ValueError(
                f"examples_seen={start} is outside of segment {index}, examples "
                f"{segment.start_examples} to {segment.end_examples}: use the plan that led there"
            )
        if inside:
            raise ValueError(
                f"examples_seen={start} is inside an update, which starts at {start - inside}: "
                "use the plan that led there"
            )
        updates_before = sum(earlier.num_updates for earlier in history[:-1])
        for update in range(first, segment.num_updates):
            yield self._point(segment, index, updates_before, update)

    def learning_rates(self, segment: Segment, updates: np.ndarray | None = None) -> np.ndarray:
        """Returns the learning rates of updates of a segment: float64, shape (updates,).

        Args:
          segment: the segment.
          updates: their numbers, int64, shape (updates,), from 0 on; None for all.
        """
        updates = np.arange(segment.num_updates) if updates is None else updates
        nominal = self._nominal(segment, updates)
        return self._scaled(self.recipe.learning_rates_at(nominal), segment, nominal)

    def to_dict(
        self, history: Sequence[Segment] = (), num_devices: int | None = None
    ) -> dict[str, Any]:
        """Returns the known segments as plain numbers, ready for JSON (see `describe.to_dict`)."""
        return describe.to_dict(self, history, num_devices)

    def table(self, history: Sequence[Segment] = (), num_devices: int | None = None) -> str:
        """Returns the known segments as rounded text of at most 100 columns, one line each."""
        return describe.table(self, history, num_devices)

    def _point(self, segment: Segment, index: int, updates_before: int, update: int) -> Point:
        """Returns update number `update` of the segment."""
        start = segment.start_examples + update * segment.batch_size
        learning_rate = self.learning_rate_of(segment, update)
        momentum = self.momentum_of(segment, update)
        setting = (segment.batch_size, momentum, self.recipe.num_examples)
        coupling = self.recipe.coupling
        name, value = coupling.noise, coupling.measure(learning_rate, *setting)
        is_scale = name == "noise_scale"
        return Point(
            start_examples=start,
            update=updates_before + update,
            segment=index,
            epoch=start / self.recipe.num_examples,
            batch_size=segment.batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            noise_scale=value if is_scale else None,
            noise_scale_exact=noise_scale_exact(learning_rate, *setting) if is_scale else None,
            diffusion=value if name == "diffusion" else None,
            accumulation_epochs=accumulation_epochs(*setting),
        )

    def learning_rate_of(self, segment: Segment, update: int) -> float:
        """Returns the learning rate of update number `update` of a segment."""
        nominal = int(self._nominal(segment, update))
        return float(self._scaled(self.recipe.learning_rate_at(nominal), segment, nominal))

    def momentum_of(self, segment: Segment, update: int) -> float:
        """Returns the momentum of update number `update` of a segment."""
        if self.momentum_curve is None:
            return segment.momentum
        nominal = int(self._nominal(segment, update))
        return float(momentum_at(self.momentum_curve, nominal / self.recipe.num_examples))

    def noise_of(self, segment: Segment, update: int) -> float | None:
        """Returns the noise scale or the diffusion of an update; None without either."""
        rate, momentum = self.learning_rate_of(segment, update), self.momentum_of(segment, update)
        measure = self.recipe.coupling.measure
        return measure(rate, segment.batch_size, momentum, self.recipe.num_examples)

    def _nominal(self, segment: Segment, updates: Any) -> Any:
        """The positions whose learning rate and momentum updates take, of one or of an array."""
        # Python's own functions are faster for one.
        least, most = (min, max) if isinstance(updates, int) else (np.minimum, np.maximum)
        starts = segment.start_examples + segment.batch_size * updates
        # A larger update replaces several of the recipe. On average they start this much later.
        lead = max(0, segment.batch_size - self.recipe.batch_size) // 2
        middles = least(starts + lead, self.recipe.end_examples - 1)
        return most(middles, most(starts, segment.nominal_start_examples))

    def _scaled(self, on_curve: Any, segment: Segment, nominal: Any) -> Any:
        growth = (segment.batch_size / self.recipe.batch_size) ** self.exponent
        if not self.recipe.coupling.sums_momentum:
            return on_curve * growth
        epochs = nominal / self.recipe.num_examples
        momentum = momentum_at(self.momentum_curve or segment.momentum, epochs)
        return (
            on_curve * growth * ((1 - momentum) / (1 - momentum_at(self.recipe.momentum, epochs)))
        )


@dataclass(frozen=True)
class FixedPlan(Plan):
    """A plan whose segments are all known in advance. It ignores what the run measures.

    Attributes:
      recipe: what the plan follows.
      segments: at least one; the first starts at example 0, each other where the last one ends.
      exponent: as in `Plan`.
      bound: the rule that limits the largest batch size; "" if nothing does.
      warnings: a line for each thing that makes the plan differ from the recipe in practice.
      momentum_curve: the momentum by the epoch; None: each segment has its own.
    """

    recipe: Recipe
    segments: tuple[Segment, ...]
    exponent: float = 1.0
    bound: str = ""
    warnings: tuple[str, ...] = ()
    momentum_curve: LearningRateCurve | None = None

    @property
    def num_updates(self) -> int:
        """The updates of the whole run."""
        return self._updates_before[-1]

    @property
    def end_examples(self) -> int:
        """Examples seen at the end of the run, within half a batch of the recipe's."""
        return self.segments[-1].end_examples

    def next(
        self, history: Sequence[Segment], measured: Mapping[str, float] | None = None
    ) -> Segment | None:
        """Returns the segment after those of `history`, or None at the end of the run.

        Raises:
          ValueError: if `history` does not end where the next segment starts.
        """
        position = history[-1].end_examples if history else 0
        if len(history) == len(self.segments) and position == self.end_examples:
            return None
        if len(history) < len(self.segments):
            segment = self.segments[len(history)]
            if segment.start_examples == position:
                return segment
        raise ValueError(
            f"history of {len(history)} segments and {position} examples does not belong to this "
            "plan: use the plan that led there"
        )

    def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]:
        """Returns all segments of the run."""
        return self.segments

    def batch_sizes(self, history: Sequence[Segment] = ()) -> tuple[int, ...]:
        """Returns each batch size of the segments after `history` once, the nearest first."""
        return tuple(dict.fromkeys(segment.batch_size for segment in self.segments[len(history) :]))

    def at(self, examples_seen: int) -> Point:
        """Returns the update that trains on example number `examples_seen` of the run.

        Takes O(log(number of segments)) time.

        Raises:
          ValueError: if `examples_seen` is outside of range(end_examples).
        """
        if not 0 <= examples_seen < self.end_examples:
            raise ValueError(
                f"examples_seen={examples_seen} is outside of the plan, which trains on examples "
                f"0 to {self.end_examples - 1}"
            )
        index = bisect_right(self._starts, examples_seen) - 1
        segment = self.segments[index]
        update = (examples_seen - segment.start_examples) // segment.batch_size
        return self._point(segment, index, self._updates_before[index], update)

    def point(self, update: int) -> Point:
        """Returns the update with this number, counted from 0 at the start of the run.

        Takes O(log(number of segments)) time.

        Raises:
          ValueError: if `update` is outside of range(num_updates).
        """
        if not 0 <= update < self.num_updates:
            raise ValueError(
                f"update={update} is outside of the plan, which has updates 0 to "
                f"{self.num_updates - 1}"
            )
        index = bisect_right(self._updates_before, update) - 1
        before = self._updates_before[index]
        return self._point(self.segments[index], index, before, update - before)

    def points(self, examples_seen: int = 0) -> Iterator[Point]:
        """Yields every update of the run from `examples_seen` on.

        Raises:
          ValueError: if `examples_seen` is outside of the run or inside an update.
        """
        if examples_seen == self.end_examples:
            return
        index = self.at(examples_seen).segment
        yield from self.segment_points(self.segments[: index + 1], examples_seen)
        for later in range(index + 1, len(self.segments)):
            yield from self.segment_points(self.segments[: later + 1])

    @cached_property
    def _starts(self) -> list[int]:
        return [segment.start_examples for segment in self.segments]

    @cached_property
    def _updates_before(self) -> list[int]:
        return list(accumulate((segment.num_updates for segment in self.segments), initial=0))


def check_fixed(plan: object) -> None:
    """Checks that an argument is a `FixedPlan`, and not another plan or a recipe.

    Raises:
      TypeError: if it is not.
    """
    if not isinstance(plan, FixedPlan):
        hint = ": make one with grow(recipe) or decay(recipe)" if isinstance(plan, Recipe) else ""
        raise TypeError(f"plan must be a batchgrow.FixedPlan, not a {type(plan).__name__}{hint}")
