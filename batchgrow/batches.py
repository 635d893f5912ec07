"""The examples of each update of a plan, divided among processes and cut to fit memory.

This is what the adapters for other trainers share. Needs NumPy only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from batchgrow.data.stream import Stream
from batchgrow.plan.plan import FixedPlan, Point, Segment, check_fixed
from batchgrow.plan.recipe import check_whole


class Step(NamedTuple):
    """One micro-batch: a pass whose gradient is a part of the gradient of an update.

    Attributes:
      point: the update.
      microbatch: number of the micro-batch in its update, from 0.
      num_microbatches: micro-batches of the update. Their gradients are averaged.
    """

    point: Point
    microbatch: int
    num_microbatches: int

    @property
    def ends_update(self) -> bool:
        """Whether the optimizer makes its update after this micro-batch."""
        return self.microbatch == self.num_microbatches - 1


class PlanBatches:
    """The indices of the examples of each micro-batch, in the order of the stream.

    All micro-batches of an update have the same size on all ranks, so that the gradient of the
    update is the mean of their gradients. The ranks together read exactly the examples that the JAX
    engine reads for the same update and seed, and each one once. As in the engine, an update is cut
    into micro-batches first, and each micro-batch into consecutive parts, one for each rank.

    >>> from batchgrow import Recipe, curves, grow
    >>> recipe = Recipe(4, 0.9, curves.step(0.1, (1,), 0.5), num_examples=8, num_epochs=2)
    >>> plan = grow(recipe, max_batch_size=8)
    >>> batches = PlanBatches(plan, Stream(8, seed=0), max_batch_size=4)
    >>> for step, indices in batches:
    ...     print(step.point.batch_size, step.microbatch, step.ends_update, indices.tolist())
    4 0 True [3, 6, 4, 0]
    4 0 True [7, 5, 2, 1]
    8 0 False [1, 4, 6, 5]
    8 1 True [7, 3, 2, 0]

    Attributes:
      plan: gives the batch size of each update.
      stream: gives the example at each position.
      rank: number of this process.
      world_size: number of processes that share each update.
      max_batch_size: most examples of a micro-batch on one rank. None: any number.

    Raises:
      TypeError: if the plan is not a `FixedPlan`.
      ValueError: if the plan was made for another number of examples, if a batch size is larger
        than the data set or not a multiple of `world_size`, or if an argument is out of range.
    """

    def __init__(
        self,
        plan: FixedPlan,
        stream: Stream,
        *,
        examples_seen: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_batch_size: int | None = None,
    ) -> None:
        check_plan(plan, stream.num_examples)
        check_whole("world_size", world_size)
        check_whole("max_batch_size", 1 if max_batch_size is None else max_batch_size)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank={rank} must be at least 0 and less than world_size={world_size}"
            )
        for index, segment in enumerate(plan.segments):
            if segment.batch_size % world_size:
                raise ValueError(
                    f"batch_size={segment.batch_size} of segment {index} is not a multiple of "
                    f"world_size={world_size}: make the plan with batch_multiple={world_size}"
                )
        self.plan, self.stream = plan, stream
        self.rank, self.world_size, self.max_batch_size = rank, world_size, max_batch_size
        self.examples_seen = examples_seen

    @property
    def examples_seen(self) -> int:
        """Examples that all ranks together have seen before iteration starts. Set it to resume."""
        return self._examples_seen

    @examples_seen.setter
    def examples_seen(self, examples_seen: int) -> None:
        check_whole("examples_seen", examples_seen, least=0)
        next(self.plan.points(examples_seen), None)  # Raises unless an update starts there.
        self._examples_seen = examples_seen

    def num_microbatches(self, batch_size: int) -> int:
        """Returns the fewest micro-batches of equal size that `max_batch_size` allows."""
        share = batch_size // self.world_size
        limit = share if self.max_batch_size is None else self.max_batch_size
        return next(n for n in range(-(-share // limit), share + 1) if share % n == 0)

    def steps(self) -> Iterator[Step]:
        """Yields the micro-batches from `examples_seen` on, without their indices."""
        for point in self.plan.points(self.examples_seen):
            num_microbatches = self.num_microbatches(point.batch_size)
            for microbatch in range(num_microbatches):
                yield Step(point, microbatch, num_microbatches)

    def indices(self, step: Step) -> np.ndarray:
        """Returns the indices of this rank's examples: int64, shape (micro-batch size,)."""
        start, batch_size = step.point.start_examples, step.point.batch_size
        size = batch_size // step.num_microbatches // self.world_size
        start += (step.microbatch * self.world_size + self.rank) * size
        return self.stream.indices(np.arange(start, start + size))

    def __iter__(self) -> Iterator[tuple[Step, np.ndarray]]:
        for step in self.steps():
            yield step, self.indices(step)

    def __len__(self) -> int:
        """The number of micro-batches from `examples_seen` on."""
        return sum(
            updates_left(segment, self.examples_seen) * self.num_microbatches(segment.batch_size)
            for segment in self.plan.segments
        )


def updates_left(segment: Segment, examples_seen: int) -> int:
    """Returns how many updates of the segment come after `examples_seen`."""
    left = segment.end_examples - max(segment.start_examples, examples_seen)
    return max(0, left // segment.batch_size)


def check_plan(plan: FixedPlan, num_examples: int) -> None:
    """Raises a TypeError or ValueError unless the plan fits a data set of `num_examples`."""
    check_fixed(plan)
    if plan.recipe.num_examples != num_examples:
        raise ValueError(
            f"the plan was made for num_examples={plan.recipe.num_examples}, but the data set has "
            f"{num_examples}: make the recipe with num_examples={num_examples}"
        )
    largest = max(segment.batch_size for segment in plan.segments)
    if largest > num_examples:
        raise ValueError(
            f"batch_size={largest} is larger than the data set of {num_examples} examples: make "
            f"the plan with max_batch_size={num_examples} or less"
        )
