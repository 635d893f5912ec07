import json
import pathlib
import resource
import shutil
import time

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from batchgrow.run.log import Clock, RunLog

CLOCKS = {"examples": "examples_seen", "updates": "updates"}
ROWS = [
    {
        "examples_seen": 10 * n,
        "updates": n,
        "train_loss": 1 / n,
        "test_accuracy": 0.1 * n,
        "wall_seconds": 2.0 * n,
    }
    for n in range(1, 6)
]


def read(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_on_disk_at_once(tmp_path: pathlib.Path) -> None:
    with RunLog(epath.Path(tmp_path), rows=[], tensorboard=False) as log:
        for number, row in enumerate(ROWS, 1):
            log.write(row)
            assert read(tmp_path) == ROWS[:number] == log.rows


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_resumed_run_finds_its_rows_whatever_happened_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    with RunLog(epath.Path(folder), rows=[], tensorboard=False) as log:
        for row in ROWS:
            log.write(row)
    whole = (folder / "metrics.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / "metrics.jsonl").write_bytes(whole[:cut] + data.draw(st.binary(max_size=3)))
    at = data.draw(st.integers(0, len(ROWS)))  # the checkpoint
    with RunLog(epath.Path(folder), rows=ROWS[:at], tensorboard=False) as log:
        assert read(folder) == ROWS[:at]
        for row in ROWS[at:]:
            log.write(row)
    assert (folder / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_told_and_leaves_the_rows_before(
    tmp_path: pathlib.Path, tensorboard: bool
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = 0
    try:
        with pytest.raises(OSError, match=r"log cannot be written \(File too large\); free space"):
            with RunLog(epath.Path(tmp_path), rows=[], tensorboard=tensorboard) as log:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
                for row in ROWS:
                    log.write(row)
                    written += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert written < len(ROWS)
    with RunLog(epath.Path(tmp_path), rows=ROWS[:written], tensorboard=tensorboard) as log:
        for row in ROWS[written:]:
            log.write(row)
    assert read(tmp_path) == ROWS


def shown(workdir: pathlib.Path) -> EventAccumulator:
    """What TensorBoard makes of a run folder."""
    found = EventAccumulator(str(workdir / "tensorboard"))
    found.Reload()
    return found


def points(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]


def test_tensorboard_has_each_column_by_both_clocks(tmp_path: pathlib.Path) -> None:
    with RunLog(epath.Path(tmp_path), rows=[], tensorboard=True) as log:
        log.text("plan", "a table")
        log.write({**ROWS[2], "train_loss": float("nan")})
        found = shown(tmp_path)  # before it is closed
    tags = {"by_examples/test_accuracy", "by_updates/test_accuracy", "seconds/wall"}
    assert set(found.Tags()["scalars"]) == tags
    assert points(found, "seconds/wall") == [(30, 6.0)]
    assert points(found, "by_examples/test_accuracy") == [(30, 0.3)]
    assert points(found, "by_updates/test_accuracy") == [(3, 0.3)]
    assert found.Tensors("plan/text_summary")[0].tensor_proto.string_val == [b"a table"]


def test_tensorboard_has_no_point_twice_however_often_a_run_is_killed(
    tmp_path: pathlib.Path,
) -> None:
    # Checkpoints lie behind the rows; TensorBoard may have read what is removed now.
    for start, end in ((0, 3), (1, 4), (0, 2), (2, 2), (2, 5)):
        with RunLog(epath.Path(tmp_path), rows=ROWS[:start], tensorboard=True) as log:
            log.text("plan", "a table")
            for row in ROWS[start:end]:
                log.write(row)
        assert len(list((tmp_path / "tensorboard").iterdir())) == 1
        for path in (tmp_path / "tensorboard").iterdir():
            shutil.copy(path, tmp_path)
    for workdir in (tmp_path, tmp_path / "all"):
        found = shown(workdir)
        for clock, column in CLOCKS.items():
            expected = [(row[column], row["train_loss"]) for row in ROWS]
            assert points(found, f"by_{clock}/train_loss") == expected
        (tmp_path / "all" / "tensorboard").mkdir(parents=True, exist_ok=True)
        for path in tmp_path.glob("events*"):
            path.rename(tmp_path / "all" / "tensorboard" / path.name)
    assert len(shown(tmp_path).Tensors("plan/text_summary")) == 1
    relative = [e.wall_time for e in shown(tmp_path).Scalars("by_updates/train_loss")]
    assert relative[1] - relative[0] == pytest.approx(2.0)  # as the run's own clock has it


def test_hyper_parameters_stand_with_the_final_metrics(tmp_path: pathlib.Path) -> None:
    with RunLog(epath.Path(tmp_path), rows=ROWS, tensorboard=True) as log:
        log.finish({"seed": 3, "plan.name": "grow"}, {"test_accuracy": 0.5})
    found = shown(tmp_path)
    assert points(found, "final/test_accuracy") == [(50, 0.5)]
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_the_clock_leaves_pauses_out_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock({"eval": 5.0, "total": 20.0, "lap": 14.0})  # a row came one second before

    def spend(seconds: float) -> None:
        now[0] += seconds

    spend(2.0)
    with clock.timer("eval"):
        spend(3.0)
    with clock.timer("input"):
        spend(1.0)
    with clock.timer("input", counts=lambda: False):  # while the devices were busy
        spend(1.0)
    assert clock.lap() == (5.0, 1.0)  # what was trained since that row, its input included
    assert clock.lap() == (0.0, 0.0)
    assert clock.total() == 27.0
    named = clock.by_name()
    assert named["eval"] == 8.0
    assert sum(named.values()) == clock.total()
