"""What a run writes down: rows against examples seen, TensorBoard events, a clock with names.

`metrics.jsonl` comes first: one JSON object a line, appended and synced. A checkpoint holds the
rows before it, so a resumed run restores the files to them, whatever happened to it, and goes on:
no row is lost and none stands twice.
"""

import contextlib
import json
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from batchgrow.run.files import Growing

Row = dict[str, Any]
PROTO: Any = event_pb2  # its messages are made at run time, which no type checker sees

TIMERS = ("compile", "input", "eval", "checkpoint")
# Standing still for these is not training: throughput leaves them out.
PAUSES = ("compile", "eval", "checkpoint")
# Columns that differ between two runs of the same trajectory.
TIMING = (
    "images_per_second",
    "input_share",
    "wall_seconds",
    *(f"{name}_seconds" for name in TIMERS),
)
EVENTS = "events.out.tfevents"  # how TensorBoard knows its files


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
      rows: those of the run so far, from its checkpoint; the files are made to hold just them.
      tensorboard: whether to write an event file beside.

    Attributes:
      rows: all rows of the run.

    Raises:
      OSError: if the disk is full or gone; the rows before stay as they are.
    """

    def __init__(self, workdir: epath.Path, *, rows: Sequence[Row], tensorboard: bool):
        self._workdir = workdir
        self.rows = list(rows)
        self._board = None
        with self._told():
            self._file = Growing(workdir / "metrics.jsonl", "".join(map(_line, rows)).encode())
            if tensorboard:
                self._board = EventFile(workdir / "tensorboard", rows)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # otherwise the run ends of something else, which is told
                raise

    def write(self, row: Row) -> None:
        """Appends a row; returns when it is on disk (an object store has it a little later).

        Raises:
          OSError: as the class.
        """
        self.rows.append(row)
        with self._told():
            self._file.append(_line(row).encode())
            if self._board is not None:
                self._board.rows([row])

    def text(self, name: str, text: str) -> None:
        """Notes a text of the run, such as the plan, in TensorBoard."""
        if self._board is not None:
            with self._told():
                self._board.text(name, text)

    def finish(self, hyper_parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Notes both for TensorBoard's HParams tab; returns when everything is written."""
        with self._told():
            if self._board is not None:
                examples_seen = self.rows[-1]["examples_seen"]
                self._board.hyper_parameters(hyper_parameters, metrics, examples_seen)
            self._flush()

    def close(self) -> None:
        """Returns when everything is written; closes the files.

        Raises:
          OSError: as the class.
        """
        with self._told():
            self._flush()
            self._file.close()
            if self._board is not None:
                self._board.file.close()

    def _flush(self) -> None:
        self._file.flush()
        if self._board is not None:
            self._board.file.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._workdir}: the log cannot be written ({error.strerror or error}); free "
                "space and start the same command again; it goes on from its last checkpoint"
            ) from error


class EventFile:
    """The TensorBoard events of a run, anew with every start: the rows so far, then what comes.

    Not `tensorboardX.SummaryWriter`: its thread dies of a full disk and leaves the run hanging. One
    START by which TensorBoard forgets all that an earlier file said, because a START at the step
    of a resumed run can be right for examples or for updates, not for both.

    Args:
      folder: for the event file; those of earlier starts are removed.
      rows: of the run so far.
    """

    def __init__(self, folder: epath.Path, rows: Sequence[Row]):
        self._began = time.time() - (rows[-1]["wall_seconds"] if rows else 0.0)
        folder.mkdir(parents=True, exist_ok=True)
        # An empty folder of an object store is none.
        files = list(folder.iterdir()) if folder.exists() else []
        before = [path for path in files if path.name.startswith(EVENTS)]
        self.file = Growing(folder / f"{EVENTS}.{time.time_ns()}")
        start = PROTO.SessionLog(status=PROTO.SessionLog.START)
        self._write(
            PROTO.Event(file_version="brain.Event:2"), PROTO.Event(step=0, session_log=start)
        )
        self.rows(rows)
        for path in before:
            path.unlink(missing_ok=True)

    def rows(self, rows: Sequence[Row]) -> None:
        """Notes each finite column against examples seen and against updates; seconds once."""
        events = [
            PROTO.Event(
                step=step,
                wall_time=self._began + row["wall_seconds"],
                summary=summary.scalar(tag, value),
            )
            for row in rows
            for name, value in row.items()
            if math.isfinite(value)
            for tag, step in _series(name, row)
        ]
        self._write(*events)

    def text(self, name: str, text: str) -> None:
        """Notes a text."""
        self._write(PROTO.Event(summary=summary.text(name, text)))

    def hyper_parameters(
        self, values: Mapping[str, Any], metrics: Mapping[str, float], examples_seen: int
    ) -> None:
        """Notes the run as a session of the HParams tab, and its metrics as `final/NAME`."""
        metrics = {f"final/{name}": value for name, value in metrics.items()}
        parts = [*summary.hparams(dict(values), metrics)]
        parts += [summary.scalar(name, value) for name, value in metrics.items()]
        self._write(*(PROTO.Event(step=examples_seen, summary=part) for part in parts))

    def _write(self, *events: Any) -> None:
        data = b""
        for event in events:
            event.wall_time = event.wall_time or time.time()
            data += _record(event.SerializeToString())
        self.file.append(data)


def _series(name: str, row: Row) -> list[tuple[str, int]]:
    """The tags of a column, each with its step."""
    if name in ("examples_seen", "updates", "epoch"):
        return []
    if name.endswith("_seconds"):
        return [(f"seconds/{name.removesuffix('_seconds')}", row["examples_seen"])]
    return [(f"by_examples/{name}", row["examples_seen"]), (f"by_updates/{name}", row["updates"])]


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _record(data: bytes) -> bytes:
    """TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)
