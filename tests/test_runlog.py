import json
import pathlib
import resource
import struct
import time

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from batchgrow.runlog import Clock, RunLog

ROWS = [
    {"examples_seen": 10 * n, "updates": n, "train_loss": 1 / n, "test_accuracy": 0.1 * n}
    for n in range(1, 6)
]


def read(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: pathlib.Path) -> list[Event]:
    """The events of all files of a folder, in the order in which they were opened."""
    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack_from("<Q", data)
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[12 + size + 4 :]
    return found


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


def test_tensorboard_has_each_column_by_both_clocks(tmp_path: pathlib.Path) -> None:
    with RunLog(epath.Path(tmp_path), rows=[], tensorboard=True) as log:
        log.text("plan", "a table")
        log.write({**ROWS[2], "train_loss": float("nan")})
        found = events(tmp_path / "tensorboard")  # before it is closed
    scalars = {
        value.tag: (event.step, value.simple_value)
        for event in found
        for value in event.summary.value
        if value.HasField("simple_value")
    }
    assert scalars == {
        "by_examples/test_accuracy": (30, pytest.approx(0.3)),
        "by_updates/test_accuracy": (3, pytest.approx(0.3)),
    }
    texts = [value for event in found for value in event.summary.value if "plan" in value.tag]
    assert texts[0].tensor.string_val == [b"a table"]


def test_tensorboard_forgets_what_comes_again(tmp_path: pathlib.Path) -> None:
    for rows in ([], ROWS[:2]):  # within a second: not to one file
        with RunLog(epath.Path(tmp_path), rows=rows, tensorboard=True) as log:
            log.write(ROWS[len(rows)])
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [1, 21]


def test_hyper_parameters_have_a_folder_of_their_own(tmp_path: pathlib.Path) -> None:
    with RunLog(epath.Path(tmp_path), rows=[], tensorboard=True) as log:
        log.hyper_parameters({"seed": 3, "plan.name": "grow"}, {"test_accuracy": 0.5})
    tags = [v.tag for e in events(tmp_path / "tensorboard" / "hparams") for v in e.summary.value]
    assert "_hparams_/session_start_info" in tags and "test_accuracy" in tags


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
