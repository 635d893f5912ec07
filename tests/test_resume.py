"""A run that is stopped and resumed ends like one that is not: in one process, at any update."""

import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from batchgrow.loop import Outcome
from batchgrow.programs import Programs
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow import train
from batchgrow.run.folder import FolderError
from batchgrow.run.progress import Progress
from batchgrow.run.signals import Preemption
from experiments import faults

NUM_UPDATES = 36  # of the faults' config: 27 of batch 16, then 9 of 32
PROGRAMS: dict[tuple, Any] = {}


class Crash(Exception):
    """Ends a run without a checkpoint."""


@pytest.fixture(autouse=True, scope="module")
def compile_once() -> Iterator[None]:
    """Lets all runs of this file share their programs: what is tested here is not compiling."""
    build = train.build

    def cached(config: Any, mesh: Any, *args: Any) -> Any:
        run = config.run
        key = (mesh.size, run.resident, run.max_per_device_batch_size, run.updates_per_dispatch)
        if key not in PROGRAMS:
            state, programs = build(config, mesh, *args)
            PROGRAMS[key] = jax.device_get(state), programs
        return PROGRAMS[key]

    with pytest.MonkeyPatch.context() as patch:
        close = Programs.__exit__
        patch.setattr(train, "build", cached)
        patch.setattr(Programs, "release", lambda *_: None)
        patch.setattr(Programs, "__exit__", lambda *_: None)
        yield
        for _, programs in PROGRAMS.values():
            close(programs)
        PROGRAMS.clear()


@dataclass(frozen=True)
class Stop:
    """How to stop a run, and after how many updates of this start."""

    how: str
    updates: int


def run(workdir: pathlib.Path, stop: Stop | None = None, **fields: Any) -> Outcome | None:
    """Trains until the end or the stop; None after a crash."""
    config = faults.get_config()
    config.run.update({"tensorboard": False, "progress": False, **fields})
    seen = 0
    advance = Progress.advance

    def count(self: Progress, examples: int) -> None:
        nonlocal seen
        seen += 1
        advance(self, examples)
        if stop is not None and stop.how == "crash" and seen >= stop.updates:
            raise Crash

    def requested(self: Preemption) -> bool:
        return stop is not None and stop.how == "preempt" and seen >= stop.updates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "advance", count)
        patch.setattr(Preemption, "requested", requested)
        try:
            return train.train(config, str(workdir), override_config=True)
        except Crash:
            return None


def assert_same(workdir: pathlib.Path, reference: pathlib.Path, rtol: float = 0.0) -> None:
    """The same rows in the same order, and the same arrays, bit for bit unless rtol is given."""
    found, expected = faults.rows(workdir), faults.rows(reference)
    assert [row["examples_seen"] for row in found] == [row["examples_seen"] for row in expected]
    arrays = (faults.final_arrays(folder, reference) for folder in (workdir, reference))
    pairs = list(zip(*arrays, strict=True))
    if not rtol:
        assert found == expected
        for array, other in pairs:
            np.testing.assert_array_equal(array, other)
        return
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=rtol, abs=rtol), name
    for array, other in pairs:
        if array.dtype != np.uint32:  # the digest
            np.testing.assert_allclose(array, other, rtol=rtol, atol=rtol)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """From fields of config.run to the folder of a run that nothing stopped."""
    folders: dict[str, pathlib.Path] = {}

    def get(**fields: Any) -> pathlib.Path:
        key = repr(fields)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("undisturbed")
            assert run(folders[key], **fields) is Outcome.FINISHED
        return folders[key]

    return get


STOPS = st.builds(Stop, st.sampled_from(["preempt", "crash"]), st.integers(1, NUM_UPDATES - 1))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(stops=st.lists(STOPS, min_size=1, max_size=3))
def test_any_stops_leave_the_same_run(
    undisturbed: Callable[..., pathlib.Path],
    tmp_path_factory: pytest.TempPathFactory,
    stops: list[Stop],
) -> None:
    workdir = tmp_path_factory.mktemp("stopped")
    for stop in stops:
        before = faults.checkpoints(workdir)
        if run(workdir, stop) is Outcome.PREEMPTED:
            assert faults.checkpoints(workdir)[-1] > max(before, default=0)
    assert run(workdir) is Outcome.FINISHED
    assert_same(workdir, undisturbed())


def test_every_single_update_can_be_the_last_of_a_start(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    outcomes = [run(tmp_path, Stop("preempt", 1)) for _ in range(NUM_UPDATES)]
    assert outcomes == [Outcome.PREEMPTED] * (NUM_UPDATES - 1) + [Outcome.FINISHED]
    assert_same(tmp_path, undisturbed())


def test_the_end_of_a_phase_stops_once(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert run(tmp_path, stop_at_phase_end=True) is Outcome.PHASE_END
    assert faults.checkpoints(tmp_path)[-1] == 27 * 16
    assert run(tmp_path, stop_at_phase_end=True) is Outcome.FINISHED
    assert_same(tmp_path, undisturbed())


def test_a_stop_in_the_last_update_of_a_phase_still_stops_to_grow(tmp_path: pathlib.Path) -> None:
    stop = Stop("preempt", 27)
    assert run(tmp_path, stop, stop_at_phase_end=True) is Outcome.PHASE_END


def test_a_finished_run_is_not_touched(
    undisturbed: Callable[..., pathlib.Path],
) -> None:
    workdir = undisturbed()
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name != ".lock"}
    assert run(workdir) is Outcome.FINISHED
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("name", faults.JSON_FILES)
def test_a_cut_file_of_a_finished_run_is_written_again(
    undisturbed: Callable[..., pathlib.Path], name: str
) -> None:
    path = undisturbed() / name
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    assert run(undisturbed()) is Outcome.FINISHED
    text = path.read_text()
    assert text == before if name != "summary.json" else "best_test_accuracy" in text


def test_lost_rows_come_back_from_the_checkpoint(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    run(tmp_path, Stop("preempt", 20))
    (tmp_path / "metrics.jsonl").unlink()
    run(tmp_path)
    assert_same(tmp_path, undisturbed())


def test_streaming_and_several_updates_a_dispatch_resume_exactly_too(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    fields = {"updates_per_dispatch": 4, "resident": False}
    for stop in (Stop("preempt", 3), Stop("crash", 4)):
        run(tmp_path, stop, **fields)
    assert run(tmp_path, **fields) is Outcome.FINISHED
    assert_same(tmp_path, undisturbed(**fields))
    assert_same(tmp_path, undisturbed(), rtol=1e-3)


# Two devices with micro-batches of 8 examples, or eight devices that share ghost batches of 16.
FEW, MANY = {"num_devices": 2, "max_per_device_batch_size": "8"}, {"num_devices": 8}


@pytest.mark.parametrize(("before", "after"), [(FEW, MANY), (MANY, FEW)], ids=["grow", "shrink"])
def test_other_hardware_goes_on_with_the_same_run(
    undisturbed: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    assert run(tmp_path, Stop("preempt", 20), **before) is Outcome.PREEMPTED
    assert run(tmp_path, **after) is Outcome.FINISHED
    assert_same(tmp_path, undisturbed(), rtol=2e-3)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(
    tmp_path: pathlib.Path,
) -> None:
    assert run(tmp_path, Stop("preempt", 5)) is Outcome.PREEMPTED
    (newest,) = faults.checkpoints(tmp_path)
    (tmp_path / "checkpoints" / str(newest) / "notes" / "metadata").write_text("")
    before = faults.contents(tmp_path)
    with pytest.raises(FolderError, match="no checkpoint can be read .* take another workdir"):
        run(tmp_path)
    assert faults.contents(tmp_path) == before
