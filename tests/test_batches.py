"""The examples of each update in a loop of one's own: ranks, micro-batches, resume."""

import numpy as np
import pytest

from batchgrow import Recipe, Stream, curves, decay, grow
from batchgrow.batches import PlanBatches, Step

N = 60
CURVE = curves.with_warmup(curves.step(0.1, (2, 3), 0.5), 1, 0.01)
RECIPE = Recipe(6, 0.9, CURVE, num_examples=N, num_epochs=4.5)
PLAN = grow(RECIPE, max_batch_size=24)
STREAM = Stream(N, seed=1)
UPDATES = [STREAM.indices(np.array(point.positions)).tolist() for point in PLAN.points()]


def run(**options: int | None) -> list[tuple[Step, list[int]]]:
    return [(step, found.tolist()) for step, found in PlanBatches(PLAN, STREAM, **options)]  # type: ignore[arg-type]


def test_the_batch_sizes_grow() -> None:
    assert [segment.batch_size for segment in PLAN.segments] == [6, 12, 24]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("max_batch_size", [None, 1, 3])
def test_ranks_share_each_update(world_size: int, max_batch_size: int | None) -> None:
    """Equal parts, together exactly the update, in the order of the engine's layout."""
    ranks = [
        run(rank=rank, world_size=world_size, max_batch_size=max_batch_size)
        for rank in range(world_size)
    ]
    together: list[list[int]] = [[]]
    for parts in zip(*ranks, strict=True):
        step = parts[0][0]
        size = step.point.batch_size // world_size // step.num_microbatches
        assert {len(indices) for _, indices in parts} == {size}
        assert max_batch_size is None or size <= max_batch_size
        assert {other for other, _ in parts} == {step}
        together[-1] += [index for _, indices in parts for index in indices]
        if step.ends_update:
            together.append([])
    assert together == [*UPDATES, []]


@pytest.mark.parametrize("max_batch_size", [None, 5])
def test_resume_at_every_update(max_batch_size: int | None) -> None:
    whole = run(max_batch_size=max_batch_size)
    for point in PLAN.points():
        start = point.start_examples
        rest = run(examples_seen=start, max_batch_size=max_batch_size)
        assert rest == whole[len(whole) - len(rest) :]
        assert rest[0][0].point == point and rest[0][0].microbatch == 0
        batches = PlanBatches(PLAN, STREAM, examples_seen=start, max_batch_size=max_batch_size)
        assert len(batches) == len(rest)
    end = PlanBatches(PLAN, STREAM, examples_seen=PLAN.end_examples)
    assert (len(end), list(end)) == (0, [])


def test_errors_are_one_line() -> None:
    cases = [
        (lambda: PlanBatches(PLAN, Stream(50, 0)), "num_examples=60, but the data set has 50"),
        (lambda: run(world_size=5), "batch_size=6 of segment 0 .*=5"),
        (lambda: run(rank=2, world_size=2), "rank=2 must be .* world_size=2"),
        (lambda: run(max_batch_size=0), "max_batch_size=0 must be a whole"),
        (lambda: run(examples_seen=7), "inside an update, which starts at 6"),
        (lambda: run(examples_seen=10**6), "outside of the plan"),
        (lambda: PlanBatches(decay(Recipe(9, 0, CURVE, 8, 3)), Stream(8, 0)), "larger than the da"),
        (lambda: PlanBatches(RECIPE, STREAM), "must be a batchgrow.FixedPlan, not a Recipe"),  # type: ignore[arg-type]
    ]
    for make, message in cases:
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
