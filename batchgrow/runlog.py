"""What a run writes down: rows against examples seen, TensorBoard events, a clock with names.

`metrics.jsonl` comes first: one JSON object a line, appended and synced. A checkpoint holds the
rows before it, so a resumed run restores the file to them, whatever happened to it, and goes on: no
row is lost and none stands twice.
"""

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import directory_check

Row = dict[str, Any]
PROTO: Any = event_pb2  # its messages are made at run time, which no type checker sees

TIMERS = ("compile", "input", "eval", "checkpoint")
# Standing still for these is not training: throughput leaves them out.
PAUSES = ("compile", "eval", "checkpoint")
# Columns that differ between two runs of the same trajectory.
TIMING = ("images_per_second", "input_share", "wall_seconds")


class Clock:
    """Seconds by name, carried on by a resumed run.

    Attributes:
      seconds: by timer: `compile` and `input` (waited for), `eval`, `checkpoint`; `total`; and the
        training seconds, and those of input, at the last `lap`.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds: dict[str, float] = {
            name: 0.0 for name in (*TIMERS, "total", "lap", "lap_input")
        }
        self.seconds.update(seconds or {})
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def timer(self, name: str, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Counts the time inside under `name`, if `counts` says so when it is over."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if counts():
                self.seconds[name] += time.perf_counter() - started

    def total(self) -> float:
        """Seconds of this run so far, those before an interruption included."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._since
        self._since = now
        return self.seconds["total"]

    def lap(self) -> tuple[float, float]:
        """Training seconds since the last lap, pauses left out; and those of them for input."""
        seconds = self._active() - self.seconds["lap"]
        waited = self.seconds["input"] - self.seconds["lap_input"]
        self.seconds["lap"] += seconds
        self.seconds["lap_input"] += waited
        return seconds, waited

    def by_name(self) -> dict[str, float]:
        """Seconds by timer, with `step` for what no timer claims; they add up to the total."""
        named = {name: self.seconds[name] for name in TIMERS}
        return named | {"step": self.total() - sum(named.values())}

    def _active(self) -> float:
        return self.total() - sum(self.seconds[name] for name in PAUSES)


class RunLog:
    """Rows of one run, in `metrics.jsonl` and TensorBoard.

    Args:
      workdir: the run folder.
      rows: those of the run so far, from its checkpoint; the file is made to hold just them.
      tensorboard: whether to write event files beside.

    Attributes:
      rows: all rows of the run.

    Raises:
      OSError: if the disk is full or gone; the rows before stay as they are.
    """

    def __init__(self, workdir: epath.Path, *, rows: Sequence[Row], tensorboard: bool):
        self._path = workdir / "metrics.jsonl"
        self.rows = list(rows)
        self._board = None
        with self._told():
            self._rewrite()
            self._file = None if _is_remote(self._path) else open(self._path, "ab", buffering=0)
            if tensorboard:
                seen = self.rows[-1]["examples_seen"] if self.rows else 0
                self._board = EventFile(os.path.join(workdir, "tensorboard"), seen)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Row) -> None:
        """Appends a row; returns when it is on disk.

        Raises:
          OSError: as the class.
        """
        self.rows.append(row)
        with self._told():
            if self._file is None:
                self._rewrite()  # object stores cannot append
            else:
                _write_all(self._file, _line(row).encode())
                os.fsync(self._file.fileno())
            if self._board is not None:
                self._board.row(row)

    def text(self, name: str, text: str) -> None:
        """Notes a text, such as the plan, in TensorBoard."""
        if self._board is not None:
            with self._told():
                self._board.text(name, text)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Notes hyper-parameters with the final metrics, for TensorBoard's HParams tab."""
        if self._board is not None:
            with self._told():
                self._board.hyper_parameters(values, metrics)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _rewrite(self) -> None:
        text = "".join(map(_line, self.rows))
        if self._path.exists() and self._path.read_bytes() == text.encode():
            return
        # Through a second file: a full disk leaves the old rows as they are.
        fresh = self._path.parent / "metrics.jsonl.new"
        fresh.write_text(text)
        fresh.replace(self._path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._path.parent}: the log cannot be written ({error.strerror or error}); free "
                "space and start the same command again; it goes on from its last checkpoint"
            ) from error


class EventFile:
    """A TensorBoard event file, written at once.

    Not `tensorboardX.SummaryWriter`: its thread dies of a full disk and leaves the run hanging.

    Args:
      folder: for the event file.
      examples_seen: where the run starts; TensorBoard is told to forget what lies beyond.
    """

    def __init__(self, folder: str, examples_seen: int):
        directory_check(folder)
        self._folder = folder
        # Two starts within a second must not write to the same file.
        self._writer = EventsWriter(os.path.join(folder, "events"), f".{time.time_ns()}")
        start = PROTO.SessionLog(status=PROTO.SessionLog.START)
        self._write(PROTO.Event(step=examples_seen + 1, session_log=start))

    def row(self, row: Row) -> None:
        """Notes each finite column against examples seen and against updates."""
        for name, value in row.items():
            if name not in ("examples_seen", "updates") and math.isfinite(value):
                for clock, step in (("examples", "examples_seen"), ("updates", "updates")):
                    scalar = summary.scalar(f"by_{clock}/{name}", value)
                    self._write(PROTO.Event(step=row[step], summary=scalar))
        self._writer.flush()

    def text(self, name: str, text: str) -> None:
        """Notes a text."""
        self._write(PROTO.Event(summary=summary.text(name, text)))
        self._writer.flush()

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Notes a session of the HParams tab, which wants a folder of its own."""
        session = EventFile(os.path.join(self._folder, "hparams"), 0)
        for part in summary.hparams(dict(values), dict(metrics)):
            session._write(PROTO.Event(summary=part))
        for name, value in metrics.items():
            session._write(PROTO.Event(summary=summary.scalar(name, value)))
        session.close()

    def close(self) -> None:
        """Closes the file; what could not be written was told when it was noted."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    while data:  # a disk that becomes full takes a part first, then raises
        data = data[file.write(data) :]


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)
