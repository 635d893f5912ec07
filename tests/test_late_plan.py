"""A plan that decides its segments while it trains, from the training loss, and interruptions.

    python tests/test_late_plan.py WORKDIR EXAMPLES

trains and kills itself after EXAMPLES.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from tiny import Trained, checkpoints, read_rows, run_experiment, tiny_experiment

from batchgrow.engine import Engine
from batchgrow.experiment import Experiment, Outcome
from batchgrow.layout import make_mesh
from batchgrow.plan import Plan, Recipe, Segment, curves
from batchgrow.run.folder import FolderError
from batchgrow.run.run import Run
from batchgrow.train import train

SEGMENT_UPDATES = 4
THRESHOLDS = {16: 2.0, 32: 1.6}  # the batch doubles where the training loss is below


@dataclass(frozen=True)
class GrowAsTheLossFalls(Plan):
    """Segments of four updates; the batch doubles where the training loss is below a threshold."""

    recipe: Recipe
    thresholds: Mapping[int, float]
    exponent: float = 1.0

    def next(self, history: Sequence[Segment], measured: Mapping[str, float]) -> Segment | None:
        position, size = 0, self.recipe.batch_size
        if history:
            position, size = history[-1].end_examples, history[-1].batch_size
            if measured["loss"] < self.thresholds.get(size, 0.0):
                size *= 2
        updates = min(SEGMENT_UPDATES, (self.end_examples - position) // size)
        if updates < 1:
            return None
        return Segment(position, updates, size, self.recipe.momentum, position)

    def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]:
        return tuple(history)

    def batch_sizes(self, history: Sequence[Segment] = ()) -> tuple[int, ...]:
        size = history[-1].batch_size if history else self.recipe.batch_size
        return tuple(n for n in (16, 32, 64) if n >= size)


OFTEN = {"run.checkpoint_every_epochs": 100 / 1437, "run.keep_checkpoints": 99}


def make(changes: Mapping[str, Any] | None = None) -> Experiment:
    """About 700 examples; checkpoints every 100 examples."""
    recipe = Recipe(
        batch_size=16,
        momentum=0.9,
        curve=curves.constant(0.03),
        num_examples=1437,
        num_epochs=0.5,
    )
    plan = GrowAsTheLossFalls(recipe, THRESHOLDS)
    return tiny_experiment(OFTEN | dict(changes or {}), plan=plan)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run_experiment(make(), tmp_path_factory.mktemp("undisturbed"))


def end(trained: Trained) -> int:
    return max(trained.states)


def test_the_plan_decides_by_what_was_measured(undisturbed):
    """Each segment's size follows from the last row of the segment before it."""
    rows = undisturbed.rows
    last = [
        row
        for row, following in zip(rows, [*rows[1:], None], strict=True)
        if following is None or following["segment"] != row["segment"]
    ]
    assert [row["segment"] for row in last] == list(range(len(last)))
    sizes = [row["batch_size"] for row in last]
    for before, row in zip(last, last[1:], strict=False):
        falls = before["train_loss"] < THRESHOLDS.get(before["batch_size"], 0.0)
        assert row["batch_size"] == before["batch_size"] * (2 if falls else 1)
    # Neither at once nor at the end, so the thresholds decide.
    assert set(sizes) == {16, 32, 64} and sizes.count(16) > 1 and sizes.count(32) > 1
    assert rows[-1]["examples_seen"] == end(undisturbed) > 700 - 64
    assert rows[-1]["noise_scale"] == pytest.approx(rows[0]["noise_scale"])
    assert "test_loss" in rows[-1]


class Crash(Exception):
    """Ends a run without a checkpoint of its last updates."""


def interrupted(workdir: pathlib.Path, how: str, after: int, changes: Any = None) -> None:
    def stop(seen: int) -> bool:
        if seen >= after and how == "crash":
            raise Crash
        return seen >= after

    if how == "crash":
        with pytest.raises(Crash):
            run_experiment(make(changes), workdir, stop=stop, override_config=True)
        return
    stopped = run_experiment(make(changes), workdir, stop=stop, override_config=True)
    assert stopped.outcome is Outcome.PREEMPTED


STOPS = {
    "inside segments": [("preempt", 80), ("preempt", 250), ("preempt", 500)],
    "crashes": [("crash", 130), ("crash", 330), ("crash", 600)],
    "before the first checkpoint": [("crash", 40), ("preempt", 64), ("crash", 90)],
}


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(STOPS["inside segments"], id="inside segments"),
        pytest.param(STOPS["crashes"], id="crashes", marks=pytest.mark.slow),
        pytest.param(
            STOPS["before the first checkpoint"],
            id="before the first checkpoint",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_run_takes_the_same_decisions(stops, undisturbed, tmp_path):
    for how, after in stops:
        interrupted(tmp_path, how, after)
    resumed = run_experiment(make(), tmp_path)
    assert resumed.outcome is Outcome.FINISHED
    assert_same(resumed, undisturbed)


@pytest.mark.slow
def test_every_dispatch_can_be_the_last_of_a_start(undisturbed, tmp_path):
    """So also the last one before each decision, and the first one after it."""
    positions = sorted(undisturbed.states)
    for position in positions[:-1]:
        interrupted(tmp_path, "preempt", position)
    resumed = run_experiment(make(), tmp_path)
    assert_same(resumed, undisturbed)


@pytest.mark.slow
def test_other_devices_take_the_same_decisions(undisturbed, tmp_path):
    interrupted(tmp_path, "preempt", 200)
    interrupted(tmp_path, "preempt", 400, {"run.num_devices": 8})
    resumed = run_experiment(make({"run.num_devices": 2}), tmp_path, override_config=True)
    assert [row["batch_size"] for row in resumed.rows] == [
        row["batch_size"] for row in undisturbed.rows
    ]
    assert [row["segment"] for row in resumed.rows] == [row["segment"] for row in undisturbed.rows]


@pytest.mark.slow
def test_a_killed_run_takes_the_same_decisions(undisturbed, tmp_path):
    """SIGKILL, in a process of its own, at places that no checkpoint has."""
    for after in (210, 460):
        command = [sys.executable, __file__, str(tmp_path), str(after)]
        folders = os.pathsep.join([str(pathlib.Path(__file__).parent.parent), *sys.path])
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": folders})
        assert done.returncode == -signal.SIGKILL
    resumed = run_experiment(make(), tmp_path)
    assert_same(resumed, undisturbed)


def assert_same(resumed: Trained, expected: Trained) -> None:
    """The same rows and the same last state, bit for bit."""
    assert resumed.rows == expected.rows
    assert end(resumed) == end(expected)
    jax.tree.map(
        np.testing.assert_array_equal, resumed.states[end(resumed)], expected.states[end(expected)]
    )


class StopEarly(GrowAsTheLossFalls):
    """Ends the run where the batch would grow to 64."""

    def next(self, history: Sequence[Segment], measured: Mapping[str, float]) -> Segment | None:
        segment = super().next(history, measured)
        return None if segment is None or segment.batch_size == 64 else segment


def test_a_plan_may_end_the_run_early(undisturbed, tmp_path):
    """By the last metrics; the end is evaluated and saved as any other."""
    plan = StopEarly(make().plan.recipe, THRESHOLDS)
    changes = OFTEN | {"run.checkpoint_every_epochs": 9.0, "evaluate_every_epochs": 9.0}
    trained = run_experiment(tiny_experiment(changes, plan=plan), tmp_path)
    grown = next(row for row in undisturbed.rows if row["batch_size"] == 64)
    before = undisturbed.rows[undisturbed.rows.index(grown) - 1]
    assert trained.outcome is Outcome.FINISHED
    assert end(trained) == before["examples_seen"]
    assert trained.rows[-1]["train_loss"] == before["train_loss"]
    assert "test_loss" in trained.rows[-1]
    assert checkpoints(tmp_path)[-1] == end(trained)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["examples_seen"] == end(trained)


@pytest.mark.slow
def test_a_checkpoint_holds_the_history(undisturbed, tmp_path):
    interrupted(tmp_path, "preempt", 400)
    rows = [row for row in read_rows(tmp_path) if row["examples_seen"] <= 400]
    experiment, mesh = make(), make_mesh(1)
    with Run(experiment, str(tmp_path), mesh) as run, Engine(experiment, mesh) as engine:
        assert run.restore(engine.state) is not None
        position = run.position
        assert position.examples_seen >= 400
        history = position.history
        assert position.current in (history[-1], None)
        assert position.current or position.examples_seen == history[-1].end_examples
        sizes = {row["segment"]: row["batch_size"] for row in undisturbed.rows}
        assert [s.batch_size for s in history] == [sizes[i] for i in range(len(history))]
        ends = [segment.end_examples for segment in history]
        assert [segment.start_examples for segment in history] == [0, *ends[:-1]]
        assert run.measured["loss"] == rows[-1]["train_loss"]


def test_a_plan_that_knows_another_past_is_refused(tmp_path):
    class Fixed(GrowAsTheLossFalls):
        def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]:
            return tuple(segment._replace(batch_size=8) for segment in history)

    interrupted(tmp_path, "preempt", 100)
    other = Fixed(make().plan.recipe, THRESHOLDS)
    with pytest.raises(FolderError, match="was trained by another plan, although by the same"):
        run_experiment(tiny_experiment(OFTEN, plan=other), tmp_path)


if __name__ == "__main__":

    def kill(point: Any, state: Any) -> bool:
        if point.end_examples >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train(make(), sys.argv[1], watch=kill)
