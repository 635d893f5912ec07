"""A run that is stopped and resumed ends like one that is not: in one process, at any update."""

import json
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow.config import make_experiment
from batchgrow.experiment import Experiment
from batchgrow.run.checkpoints import positions_of
from batchgrow.run.folder import FolderError
from batchgrow.train import Outcome, train
from experiments import faults, struck

NUM_UPDATES = 36  # of the faults' config: 27 of batch size 16, then 9 of 32


class Crash(Exception):
    """Ends a run without a checkpoint."""


@dataclass(frozen=True)
class Stop:
    """How to stop a run, and after how many dispatches of this start."""

    how: str
    dispatches: int


def run(
    workdir: pathlib.Path, stop: Stop | None = None, without: str = "", **fields: Any
) -> Outcome | None:
    """Trains until the end or the stop; None after a crash.

    Args:
      stop: what `watch` does and when.
      without: a field of the optimizer that the run folder does not record.
      fields: of `config.run`.
    """
    config = struck.get_config()
    config.run.update({"tensorboard": False, "progress": False, **fields})
    seen = 0

    def watch(*_: Any) -> bool:
        nonlocal seen
        seen += 1
        if stop is None or seen < stop.dispatches:
            return False
        if stop.how == "crash":
            raise Crash
        return True

    experiment = make_experiment(config)
    optimizer = {k: v for k, v in experiment.settings["optimizer"].items() if k != without}
    experiment = replace(experiment, settings={**experiment.settings, "optimizer": optimizer})
    try:
        return train(experiment, str(workdir), override_config=True, watch=watch)
    except Crash:
        return None


def assert_same(workdir: pathlib.Path, reference: pathlib.Path, rtol: float = 0.0) -> None:
    """The same rows in the same order, and the same arrays, bit for bit unless rtol is given."""
    found, expected = faults.rows(workdir), faults.rows(reference)
    assert [row["examples_seen"] for row in found] == [row["examples_seen"] for row in expected]
    if not rtol:
        assert found == expected
        assert_same_arrays(workdir, reference)
        return
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=rtol, abs=rtol), name
    arrays = (faults.final_arrays(folder, reference) for folder in (workdir, reference))
    for array, other in zip(*arrays, strict=True):
        if array.dtype != np.uint32:  # the digest
            np.testing.assert_allclose(array, other, rtol=rtol, atol=rtol)


def assert_same_arrays(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """The last checkpoints are equal bit for bit."""
    arrays = (faults.final_arrays(folder, reference) for folder in (workdir, reference))
    for array, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(array, other)


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


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(stops=st.lists(STOPS, min_size=1, max_size=3))
def test_any_stops_leave_the_same_run(
    undisturbed: Callable[..., pathlib.Path],
    tmp_path_factory: pytest.TempPathFactory,
    stops: list[Stop],
) -> None:
    workdir = tmp_path_factory.mktemp("stopped")
    for stop in stops:
        before = positions_of(str(workdir))
        if run(workdir, stop) is Outcome.PREEMPTED:
            assert positions_of(str(workdir))[-1] > max(before, default=0)
    assert run(workdir) is Outcome.FINISHED
    assert_same(workdir, undisturbed())


@pytest.mark.slow
def test_a_run_in_another_thread_is_the_same(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """Signals reach the main thread only; `watch` stops the run as ever."""
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, tmp_path, Stop("preempt", 9)).result() is Outcome.PREEMPTED
        assert pool.submit(run, tmp_path).result() is Outcome.FINISHED
    assert_same(tmp_path, undisturbed())


@pytest.mark.slow
def test_a_run_from_before_a_field_existed_goes_on(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert run(tmp_path, Stop("preempt", 9), without="debias_momentum") is Outcome.PREEMPTED
    assert "debias_momentum" not in (tmp_path / "config.json").read_text()
    assert run(tmp_path) is Outcome.FINISHED
    assert_same(tmp_path, undisturbed())


@pytest.mark.slow
def test_every_single_update_can_be_the_last_of_a_start(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    outcomes = [run(tmp_path, Stop("preempt", 1)) for _ in range(NUM_UPDATES)]
    assert outcomes == [Outcome.PREEMPTED] * (NUM_UPDATES - 1) + [Outcome.FINISHED]
    assert_same(tmp_path, undisturbed())


def test_a_growth_stops_once(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert run(tmp_path, stop_at_growth=True) is Outcome.GROWTH
    assert positions_of(str(tmp_path))[-1] == 27 * 16
    assert run(tmp_path, stop_at_growth=True) is Outcome.FINISHED
    assert_same(tmp_path, undisturbed())


def test_a_stop_in_the_last_update_before_a_growth_is_one_to_grow(tmp_path: pathlib.Path) -> None:
    stop = Stop("preempt", 27)
    assert run(tmp_path, stop, stop_at_growth=True) is Outcome.GROWTH


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
    if name != "summary.json":
        assert text == before
        return
    old, new = json.loads(before), json.loads(text)
    for key in ("final", "best", "num_updates", "segments"):
        assert new[key] == old[key]
    # The time before the restart counts too.
    rows = (undisturbed() / "metrics.jsonl").read_text().splitlines()
    assert new["wall_seconds"] >= json.loads(rows[-1])["wall_seconds"]


def test_rows_after_the_checkpoint_are_written_again(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    run(tmp_path, Stop("crash", 24))
    before = faults.rows(tmp_path)
    assert before[-1]["examples_seen"] > positions_of(str(tmp_path))[-1]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    run(tmp_path)
    assert_same(tmp_path, undisturbed())


@pytest.mark.slow
def test_rows_before_the_checkpoint_are_lost_with_the_file_and_nothing_else(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path, caplog: Any
) -> None:
    run(tmp_path, Stop("preempt", 20))
    lost = len(faults.rows(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    run(tmp_path)
    assert f"{lost} of the {lost} rows before the checkpoint are lost" in caplog.text
    assert faults.rows(tmp_path) == faults.rows(undisturbed())[lost:]
    assert_same_arrays(tmp_path, undisturbed())


@pytest.mark.slow
def test_streaming_and_several_updates_a_dispatch_resume_exactly_too(
    undisturbed: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    fields = {"updates_per_dispatch": 4, "input": "streamed"}
    for stop in (Stop("preempt", 3), Stop("crash", 4)):
        run(tmp_path, stop, **fields)
    assert run(tmp_path, **fields) is Outcome.FINISHED
    assert_same(tmp_path, undisturbed(**fields))
    assert_same(tmp_path, undisturbed(), rtol=1e-3)


# Two devices with micro-batches of 8 examples, or eight devices that share ghost batches of 16.
FEW, MANY = {"num_devices": 2, "max_microbatch_size": 8}, {"num_devices": 8}


@pytest.mark.slow
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


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_run_does_not_go_on_with_other_data(tmp_path: pathlib.Path, part: str) -> None:
    assert run(tmp_path, Stop("preempt", 5)) is Outcome.PREEMPTED
    before = faults.contents(tmp_path)
    experiment = with_another_label(part)
    with pytest.raises(FolderError, match=rf"other {part} data \(.*, CRC-32 .*; now .*; bring"):
        train(experiment, str(tmp_path))
    assert faults.contents(tmp_path) == before
    assert train(experiment, str(tmp_path), override_config=True) is Outcome.FINISHED
    assert train(experiment, str(tmp_path)) is Outcome.FINISHED  # These are its data from now on.


def test_a_finished_run_of_other_data_is_refused(
    undisturbed: Callable[..., pathlib.Path],
) -> None:
    with pytest.raises(FolderError, match="other train data"):
        train(with_another_label("train"), str(undisturbed()))


def with_another_label(part: str) -> Experiment:
    """The experiment of `run`, where the last example of "train" or "test" has another label."""
    config = struck.get_config()
    config.run.update({"tensorboard": False, "progress": False})
    experiment = make_experiment(config)
    data: Any = getattr(experiment, f"{part}_data")
    arrays = {name: array.copy() for name, array in data.arrays.items()}
    arrays["label"][-1] = (arrays["label"][-1] + 1) % 10
    changes: dict[str, Any] = {f"{part}_data": replace(data, arrays=arrays)}
    return replace(experiment, **changes)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(
    tmp_path: pathlib.Path,
) -> None:
    assert run(tmp_path, Stop("preempt", 5)) is Outcome.PREEMPTED
    (newest,) = positions_of(str(tmp_path))
    (tmp_path / "checkpoints" / str(newest) / "notes" / "metadata").write_text("")
    before = faults.contents(tmp_path)
    with pytest.raises(FolderError, match="no checkpoint can be read .* take another workdir"):
        run(tmp_path)
    assert faults.contents(tmp_path) == before


@pytest.mark.slow
def test_a_finished_run_that_lost_rows_and_summary_writes_what_is_known(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path) is Outcome.FINISHED
    before = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("{")
    assert run(tmp_path) is Outcome.FINISHED
    assert "rows before the checkpoint are lost" in caplog.text
    after = json.loads((tmp_path / "summary.json").read_text())
    assert after["num_updates"] == before["num_updates"]
    assert after["final"] == {} and after["best"]["value"] is None
