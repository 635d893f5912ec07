"""Where a run is in its plan, and what is due there. It touches neither devices nor files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from batchgrow.experiment import MAX_EXAMPLES, Experiment
from batchgrow.plan import Point, Segment


class Due(NamedTuple):
    """What is due after a dispatch.

    Attributes:
      noise: how many intervals of the noise probe have passed. If any has, the noise is measured.
      row: whether a row is written.
      evaluation: whether the test set is evaluated. Then a row is due too.
      checkpoint: whether a checkpoint is saved.
    """

    noise: int
    row: bool
    evaluation: bool
    checkpoint: bool


class Position:
    """Where a run is in its plan: the examples that it has seen, and its segments so far.

    All processes of a run go through the same positions, and so does a run that is resumed. What
    is due depends on the position before and after the last dispatch, and on nothing else.

    Args:
      experiment: has the plan, the cadence, the noise probe, and whether traced checkpoints are
        kept.

    Attributes:
      examples_seen: the examples of all updates so far.
      history: the segments so far, the current one last.
    """

    def __init__(self, experiment: Experiment):
        self._plan, self._cadence = experiment.plan, experiment.cadence
        probe = experiment.noise
        self._probe_every = MAX_EXAMPLES if probe is None else probe.every
        self._keep_traced = experiment.execution.keep_traced
        self.examples_seen = 0
        self.history: list[Segment] = []
        self._before = 0  # the examples seen before the last dispatch

    def restore(self, examples_seen: int, history: Sequence[Segment]) -> bool:
        """Continues from a checkpoint; returns whether the plan leads there.

        Args:
          examples_seen: the position of the checkpoint.
          history: the segments so far, the current one last.
        """
        self.examples_seen, self.history = examples_seen, list(history)
        return _same_segments(self.known()[: len(self.history)], self.history)

    @property
    def current(self) -> Segment | None:
        """The segment that the next update belongs to; None if it is not decided yet."""
        if self.history and self.examples_seen < self.history[-1].end_examples:
            return self.history[-1]
        return None

    def known(self) -> tuple[Segment, ...]:
        """Returns all segments that are decided: those so far and those certain to follow."""
        return self._plan.known(self.history)

    def batch_sizes(self) -> list[int]:
        """Returns the batch sizes that may still come, the nearest first."""
        current = [self.current.batch_size] if self.current else []
        return list(dict.fromkeys([*current, *self._plan.batch_sizes(self.history)]))

    def next_segment(self, measured: Mapping[str, float]) -> Segment | None:
        """Returns the current segment or, if it is complete, begins and returns the next one.

        Args:
          measured: the newest training metrics, by which a plan may decide.

        Returns:
          The segment, or None at the end of the run.
        """
        if self.current is None:
            segment = self._plan.next(self.history, measured)
            if segment is None:
                return None
            self.history.append(segment)
        return self.current

    def dispatches(self, most: int) -> Iterator[list[Point]]:
        """Yields the updates of the current segment from here on, in groups.

        A group also ends where something is due. `advance` must follow each of them.

        Args:
          most: the most updates of a group.
        """
        segment = self.history[-1]
        points = self._plan.segment_points(self.history, self.examples_seen)
        while self.examples_seen < segment.end_examples:
            examples = self._next_stop(segment) - self.examples_seen
            count = min(most, -(-examples // segment.batch_size))
            yield list(islice(points, count))

    def advance(self, points: Sequence[Point]) -> None:
        """Moves on to the end of these updates, which were dispatched."""
        self._before, self.examples_seen = self.examples_seen, points[-1].end_examples

    def due(self) -> Due:
        """Returns what is due after the last dispatch, unless the run ends there (`is_at_end`)."""
        cadence = self._cadence
        return Due(
            noise=self._num_passed(self._probe_every),
            # A row never mixes two batch sizes.
            row=self._is_traced() or self._has_passed(cadence.log, cadence.evaluate),
            evaluation=self._has_passed(cadence.evaluate),
            # A resumed run takes the same late decision, because a checkpoint soon holds it.
            checkpoint=self.is_kept
            or self._has_passed(cadence.checkpoint)
            or self._has_grown_late(self._before),
        )

    @property
    def is_kept(self) -> bool:
        """Whether a checkpoint after the last dispatch is never removed."""
        return self._keep_traced and self._is_traced()

    @property
    def grows_late(self) -> bool:
        """Whether the batch grows here, by a decision that the plan has just taken."""
        return self._has_grown_late(self.examples_seen)

    @property
    def begins_late(self) -> bool:
        """Whether the run begins here, with a segment that the plan has just decided."""
        return not self.examples_seen and not self._plan.known(())

    def grows_next(self, measured: Mapping[str, float]) -> bool:
        """Returns whether a segment ends here and the next one has another batch size.

        Args:
          measured: as in `next_segment`.
        """
        if self.current is not None or not self.history:
            return False
        following = self._plan.next(self.history, measured)
        return following is not None and following.batch_size != self.history[-1].batch_size

    def is_at_end(self, measured: Mapping[str, float]) -> bool:
        """Returns whether the run ends here.

        Args:
          measured: as in `next_segment`; at the end of a segment, the metrics up to there.
        """
        complete = self.current is None and bool(self.history)
        return complete and self._plan.next(self.history, measured) is None

    def _next_stop(self, segment: Segment) -> int:
        """The first position beyond this one at which something is due."""
        seen, cadence = self.examples_seen, self._cadence
        every = (cadence.log, cadence.evaluate, cadence.checkpoint, self._probe_every)
        stops = [(seen // interval + 1) * interval for interval in every]
        return min(*stops, cadence.next_trace(seen, segment))

    def _num_passed(self, interval: int) -> int:
        """How many multiples of the interval the last dispatch has reached.

        More than one only if an update has more examples than the interval.
        """
        return self.examples_seen // interval - self._before // interval

    def _has_passed(self, *intervals: int) -> bool:
        """Whether the last dispatch reached a multiple of one of the intervals."""
        return any(map(self._num_passed, intervals))

    def _is_traced(self) -> bool:
        """Whether the last dispatch reached a row of the trace or the end of a segment."""
        next_trace = self._cadence.next_trace(self._before, self.history[-1])
        return self.current is None or next_trace <= self.examples_seen

    def _has_grown_late(self, examples_seen: int) -> bool:
        """Whether the batch grew at this position, by a decision that was not known before it."""
        *past, last = self.history
        return (
            last.start_examples == examples_seen
            and bool(past)
            and last.batch_size != past[-1].batch_size
            and self._plan.known(past) == tuple(past)
        )


def _same_segments(a: Sequence[Segment], b: Sequence[Segment]) -> bool:
    """Whether they are equal; the last bit of a momentum may differ on another machine."""
    return len(a) == len(b) and all(
        x._replace(momentum=0.0) == y._replace(momentum=0.0)
        and math.isclose(x.momentum, y.momentum)
        for x, y in zip(a, b, strict=True)
    )
