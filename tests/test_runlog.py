import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from batchgrow.run.log import LogMark, Row, RunLog
from batchgrow.run.timers import Clock

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


def open_log(
    folder: pathlib.Path, mark: LogMark | None = None, tensorboard: bool = False
) -> RunLog:
    mark = json.loads(json.dumps(mark))  # as a checkpoint has it
    return RunLog(epath.Path(folder), mark=mark, tensorboard=tensorboard)


def write(log: RunLog, rows: Sequence[Row]) -> list[LogMark]:
    """Writes rows; returns the mark before the first and after each of them."""
    marks = [log.mark()]
    for row in rows:
        log.write(row)
        marks.append(log.mark())
    return marks


def test_rows_are_on_disk_at_once(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path) as log:
        assert log.last is None
        for number, row in enumerate(ROWS, 1):
            log.write(row)
            assert read(tmp_path) == ROWS[:number] == list(log.rows())
            assert (log.last, log.num_rows) == (row, number)


@pytest.mark.parametrize("tensorboard", [False, True])
@pytest.mark.parametrize("at", range(len(ROWS) + 1))
def test_a_resumed_run_goes_back_to_its_mark(
    tmp_path: pathlib.Path, at: int, tensorboard: bool
) -> None:
    with open_log(tmp_path, tensorboard=tensorboard) as log:
        mark = write(log, ROWS)[at]
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"exampl')  # killed while it wrote
    with open_log(tmp_path, mark, tensorboard) as log:
        assert read(tmp_path) == ROWS[:at]
        assert log.last == (ROWS[at - 1] if at else None)
        again = write(log, ROWS[at:])
        assert again[0]["file"] == mark["file"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert [path.name for path in tmp_path.glob("*.bad")] == []


def test_without_a_checkpoint_a_run_starts_anew(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with open_log(tmp_path, tensorboard=True) as log:
            write(log, ROWS[:2])
        assert read(tmp_path) == ROWS[:2]


def test_a_mark_does_not_grow_with_the_rows(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path, tensorboard=True) as log:
        log.text("plan", "a table")
        marks = write(log, [{**ROWS[0], "examples_seen": n} for n in range(10_000, 10_100)])
    assert len(json.dumps(marks[-1])) - len(json.dumps(marks[1])) < 20


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_keeps_its_readable_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    with open_log(folder) as log:
        marks = write(log, ROWS)
    at = data.draw(st.integers(1, len(ROWS)))
    whole = bytearray((folder / "metrics.jsonl").read_bytes())
    place = data.draw(st.integers(0, marks[at]["file"][0] - 1))
    if data.draw(st.booleans()):
        whole[place] ^= 1 << data.draw(st.integers(0, 7))
        allowed = 2  # a row, or two if its line break was hit
    else:
        del whole[place:]
        allowed = at
    (folder / "metrics.jsonl").write_bytes(whole)
    with open_log(folder, marks[at]) as log:
        kept = read(folder)
        assert log.last == ROWS[at - 1]
        assert log.num_rows == len(kept) >= at - allowed
        positions = [row["examples_seen"] for row in kept]
        assert positions == sorted(set(positions))
        assert sum(row not in ROWS[:at] for row in kept) <= 1
        last = write(log, ROWS[at:])[-1]
    assert read(folder) == kept + ROWS[at:]
    assert (folder / "metrics.jsonl.bad").read_bytes() == whole
    with open_log(folder, last):  # and it is whole from now on
        assert read(folder) == kept + ROWS[at:]
    assert not (folder / "metrics.jsonl.bad1").exists()


def test_lost_rows_are_counted(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    with open_log(tmp_path, tensorboard=True) as log:
        mark = write(log, ROWS)[3]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    with open_log(tmp_path, mark, tensorboard=True):
        assert read(tmp_path) == [ROWS[0], ROWS[2]]  # and none after the mark
    assert "metrics.jsonl is damaged: 1 of the 3 rows before the checkpoint are lost" in caplog.text
    path.unlink()
    with open_log(tmp_path, mark, tensorboard=True) as log:
        assert read(tmp_path) == []
        assert log.last == ROWS[2]
    assert "metrics.jsonl is missing: 3 of the 3 rows before the checkpoint are lost" in caplog.text
    assert len(caplog.messages) == 2
    # The events were not damaged.
    expected = [(row["examples_seen"], row["train_loss"]) for row in ROWS[:3]]
    assert points(shown(tmp_path), "by_examples/train_loss") == expected


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_reported_and_leaves_the_rows_before(
    tmp_path: pathlib.Path, tensorboard: bool
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    marks = []
    try:
        with pytest.raises(OSError, match=r"could not be written \(File too large\); free space"):
            with open_log(tmp_path, tensorboard=tensorboard) as log:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
                for row in ROWS:
                    marks.append(log.mark())
                    log.write(row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    written = len(marks) - 1
    assert written < len(ROWS)
    with open_log(tmp_path, marks[-1], tensorboard) as log:
        write(log, ROWS[written:])
    assert read(tmp_path) == ROWS
    if tensorboard:
        assert len(points(shown(tmp_path), "by_updates/train_loss")) == len(ROWS)


def shown(workdir: pathlib.Path) -> EventAccumulator:
    """What TensorBoard makes of a run folder."""
    found = EventAccumulator(str(workdir / "tensorboard"))
    found.Reload()
    return found


def event_files(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Those with events."""
    paths = list((workdir / "tensorboard").iterdir())
    assert len(paths) <= 2
    return [path for path in paths if path.stat().st_size]


def points(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]


def test_tensorboard_has_each_column_by_both_clocks(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path, tensorboard=True) as log:
        log.text("plan", "a table")
        log.write({**ROWS[2], "train_loss": float("nan"), "phase": "warm-up", "none": None})
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
    marks: list[LogMark | None] = [None] * 6
    open_viewer = None
    # Checkpoints are behind the rows; TensorBoard may have read what is removed now.
    for start, end in ((0, 3), (1, 4), (0, 2), (2, 2), (2, 5)):
        with open_log(tmp_path, marks[start], tensorboard=True) as log:
            log.text("plan", "a table")
            marks[start : end + 1] = write(log, ROWS[start:end])
            open_viewer = open_viewer or EventAccumulator(str(tmp_path / "tensorboard"))
            open_viewer.Reload()
            for clock, column in CLOCKS.items():
                expected = [(row[column], row["train_loss"]) for row in ROWS[:end]]
                assert points(open_viewer, f"by_{clock}/train_loss") == expected
        assert len(event_files(tmp_path)) == 1
        for path in event_files(tmp_path):
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
    times = [event.wall_time for event in shown(tmp_path).Scalars("by_updates/train_loss")]
    relative = [later - times[0] for later in times]
    assert relative == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0])  # by the run's own clock


@pytest.mark.parametrize("lost", ["removed", "damaged", "not written before"])
def test_lost_events_are_written_again_from_the_rows(tmp_path: pathlib.Path, lost: str) -> None:
    with open_log(tmp_path, tensorboard=lost != "not written before") as log:
        mark = write(log, ROWS)[3]
    for path in (tmp_path / "tensorboard").glob("*"):
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        if lost == "removed":
            path.unlink()
    with open_log(tmp_path, mark, tensorboard=True) as log:
        write(log, ROWS[3:])
    expected = [(row["updates"], row["train_loss"]) for row in ROWS]
    assert points(shown(tmp_path), "by_updates/train_loss") == expected


# Resumes a log of many rows, all of which TensorBoard has lost.
MANY = """
import json, pathlib, resource, sys, zlib
sys.path.insert(0, sys.argv[2])
from test_runlog import ROWS, open_log
folder, count = pathlib.Path(sys.argv[1]), 50_000
rows = [{**ROWS[0], "examples_seen": 10 * n, "updates": n, "filler": "x" * 400}
        for n in range(1, count + 1)]
data = "".join(f"{json.dumps(row)}\\n" for row in rows).encode()
(folder / "metrics.jsonl").write_bytes(data)
mark = {"num_rows": count, "last": rows[-1], "file": [len(data), zlib.crc32(data)], "events": None}
del rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_log(folder, mark, tensorboard=True) as log:
    log.write({**ROWS[0], "examples_seen": 10 * count + 10, "updates": count + 1})
    print(len(json.dumps(log.mark())))
    print(len(data) // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_resume_is_linear_in_rows(tmp_path: pathlib.Path) -> None:
    """It ends, although copying all events for each row would take days; a mark stays small."""
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", MANY, str(tmp_path), str(here)]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    mark, size, grown = map(int, done.stdout.split())
    assert mark < 1000
    assert grown < size / 2  # KiB; the rows are read one by one
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50_001
    (path,) = event_files(tmp_path)
    assert path.stat().st_size > 50_000 * 100


def test_hyper_parameters_stand_with_the_final_metrics(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path, tensorboard=True) as log:
        write(log, ROWS)
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
