"""Where a run is in its plan, and what is due there, without a run."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from test_late_plan import make as make_late
from tiny import tiny_experiment

from batchgrow.experiment import Experiment, NoiseProbe
from batchgrow.run.position import Due, Position

MANY = 1000  # updates of a dispatch


def walk(
    position: Position, most: int = MANY, measured: Mapping[str, float] | None = None
) -> Iterator[Due]:
    """Goes to the end of the run, and yields what is due after each dispatch."""
    while position.next_segment(measured or {}) is not None:
        for points in position.dispatches(most):
            position.advance(points)
            yield position.due()


def positions(experiment: Experiment, what: str, most: int = MANY, **measured: float) -> list[int]:
    """Where something is due."""
    position = Position(experiment)
    return [position.examples_seen for due in walk(position, most, measured) if getattr(due, what)]


@pytest.mark.parametrize("most", [1, 3, MANY])
def test_what_is_due_does_not_depend_on_the_dispatches(most):
    experiment = tiny_experiment()
    assert positions(experiment, "row", most) == [160, 288, 352, 480, 608, 736]
    assert positions(experiment, "evaluation", most) == [480]
    assert positions(experiment, "noise", most) == []


def test_a_probe_is_enough_to_measure_the_noise():
    """Nothing else of an experiment says how often."""
    probe = NoiseProbe(piece_size=16, num_pieces=2, every=100, horizon=100.0)
    experiment = dataclasses.replace(tiny_experiment(), noise=probe)
    # Updates of 32 examples; from 352 on of 128, the first of which reaches 480.
    assert positions(experiment, "noise") == [128, 224, 320, 480, 608, 736]
    counts = [due.noise for due in walk(Position(experiment)) if due.noise]
    assert counts == [1, 1, 1, 1, 2, 1]


def test_a_resumed_run_has_the_same_ahead():
    position = Position(tiny_experiment())
    ahead = []
    for due in walk(position):
        ahead.append((position.examples_seen, list(position.history), due))
    for index, (examples_seen, history, _) in enumerate(ahead):
        resumed = Position(tiny_experiment())
        assert resumed.restore(examples_seen, history)
        assert list(walk(resumed)) == [due for *_, due in ahead[index + 1 :]]
        assert resumed.is_at_end({})


def test_segments_of_another_plan_are_noticed():
    experiment = tiny_experiment()
    first, second = experiment.plan.known()
    other_bit = first._replace(momentum=float(np.nextafter(first.momentum, 1.0)))
    assert Position(experiment).restore(480, [other_bit, second])
    assert not Position(experiment).restore(480, [first._replace(momentum=0.5), second])
    assert not Position(experiment).restore(480, [first, second._replace(batch_size=64)])


def test_the_batch_grows_where_a_segment_ends():
    position = Position(tiny_experiment())
    assert not position.grows_next({}) and not position.is_at_end({})
    assert position.batch_sizes() == [32, 128]
    found = [(position.examples_seen, position.grows_next({})) for _ in walk(position)]
    assert [examples_seen for examples_seen, grows in found if grows] == [352]
    assert position.is_at_end({}) and position.batch_sizes() == []


def test_a_late_growth_is_soon_in_a_checkpoint():
    """Of a plan that grows after four updates of 16 examples and four of 32."""
    changes = {"run.checkpoint_every_epochs": 9.0, "log_every_epochs": 0.04}
    assert positions(make_late(changes), "checkpoint", 1, loss=0.0) == [64 + 32, 64 + 128 + 64]
    assert positions(make_late(changes), "checkpoint", 1, loss=9.0) == []
    position = Position(make_late(changes))
    grows = [position.grows_late for _ in walk(position, 1, {"loss": 0.0})]
    assert not any(grows)  # only before the first update
    position.restore(64, position.history[:1])
    position.next_segment({"loss": 0.0})
    assert position.grows_late
    # A fixed plan takes the same decision again by itself.
    changes = {"run.checkpoint_every_epochs": 9.0}
    assert positions(tiny_experiment(changes), "checkpoint", 1) == []


@pytest.mark.parametrize("keep_traced", [True, False])
def test_traced_checkpoints_are_kept(keep_traced):
    changes: dict[str, Any] = {"trace.per_decade": 1, "run.checkpoint_every_epochs": 9.0}
    experiment = tiny_experiment(changes)
    execution = dataclasses.replace(experiment.execution, keep_traced=keep_traced)
    experiment = dataclasses.replace(experiment, execution=execution)
    # After 1 and 10 updates of 32 examples, after 1 of 128, and at the ends of the segments.
    traced = [32, 320, 352, 480, 736]
    assert set(traced) < set(positions(experiment, "row"))
    assert positions(experiment, "checkpoint") == (traced if keep_traced else [])
    position = Position(experiment)
    kept = [position.examples_seen for _ in walk(position) if position.is_kept]
    assert kept == (traced if keep_traced else [])
