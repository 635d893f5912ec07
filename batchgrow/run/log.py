"""The log of a run: rows by examples seen, and TensorBoard events.

Each row is one line of JSON in `metrics.jsonl`, appended and synced. A checkpoint holds a mark: how
far the files reach, with a checksum. A resumed run cuts the files back to the mark and continues,
so that no row is missing and none is written twice.
"""

import contextlib
import json
import logging
import math
import numbers
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from batchgrow.run.files import (
    Extent,
    Growing,
    as_oserror,
    cannot_write,
    copy,
    holds,
    unused,
    write_whole,
)

log = logging.getLogger(__name__)
Row = dict[str, Any]
LogMark = dict[str, Any]  # JSON
# Their messages are made at run time, which no type checker sees.
PROTO: Any = event_pb2
SUMMARY: Any = summary_pb2.Summary  # type: ignore
EVENTS = "events.out.tfevents"  # how TensorBoard recognises its files
ROWS_PER_WRITE = 1000


class RunLog:
    """The rows of a run, in `metrics.jsonl` and in TensorBoard. No row is kept in memory.

    A `metrics.jsonl` that is missing or damaged at a resume is copied to `metrics.jsonl.bad`; the
    rows that can be read stay, and a warning says how many are lost.

    Args:
      folder: the run folder.
      mark: the mark of the checkpoint that the run resumes from; None starts both files anew.
      tensorboard: whether to write an event file too.

    Attributes:
      num_rows: number of rows in the file.
      last: the newest row, None before the first; a resume restores it.

    Raises:
      OSError: if a file cannot be written; the rows before stay as they are.
    """

    def __init__(self, folder: epath.Path, *, mark: LogMark | None, tensorboard: bool):
        mark = mark or {"num_rows": 0, "last": None, "file": Extent(), "events": None}
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._board = None
        self.num_rows: int = mark["num_rows"]
        self.last: Row | None = mark["last"]
        with self._named():
            extent = Extent(*mark["file"])
            if not holds(self._path, extent):
                extent = self._repair()
            self._file = Growing(self._path, extent)
            if tensorboard:
                self._board = EventFile(folder / "tensorboard", mark["events"], self)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # otherwise the error that ends the run is reported
                raise

    def write(self, row: Row) -> None:
        """Appends a row; returns when it is on disk (on an object store a little later).

        Args:
          row: JSON; has `examples_seen`, `updates` and `wall_seconds`.

        Raises:
          OSError: as the class.
        """
        with self._named():
            self._file.append(f"{json.dumps(row)}\n".encode())
            if self._board is not None:
                self._board.write([row])
        self.num_rows += 1
        self.last = row

    def rows(self) -> Iterator[Row]:
        """Reads all rows from the file."""
        self._file.flush()
        with self._path.open("rb") as file:
            yield from map(json.loads, file)

    def mark(self) -> LogMark:
        """Writes everything, and returns what a resume needs to continue here; small, JSON.

        Raises:
          OSError: as the class.
        """
        with self._named():
            self._flush()
        return {
            "num_rows": self.num_rows,
            "last": self.last,
            "file": list(self._file.extent),
            "events": self._board and self._board.mark(),
        }

    def text(self, name: str, text: str) -> None:
        """Writes a text of the run, such as its plan, to TensorBoard; but not twice in a row."""
        if self._board is not None:
            with self._named():
                self._board.text(name, text)

    def finish(self, hyper_parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Writes both for TensorBoard's HParams tab; returns when everything is written.

        Raises:
          OSError: as the class.
        """
        with self._named():
            if self._board is not None:
                examples_seen = self.last["examples_seen"] if self.last else 0
                self._board.hyper_parameters(hyper_parameters, metrics, examples_seen)
            self._flush()

    def close(self) -> None:
        """Returns when everything is written; closes the files.

        Raises:
          OSError: as the class.
        """
        with self._named():
            self._flush()
            self._file.close()
            if self._board is not None:
                self._board.file.close()

    def _flush(self) -> None:
        self._file.flush()
        if self._board is not None:
            self._board.file.flush()

    def _repair(self) -> Extent:
        """Keeps those lines of a damaged file that are rows up to the mark, in order."""
        with as_oserror():
            data = self._path.read_bytes() if self._path.exists() else None
        kept, before = [], -1
        end = self.last["examples_seen"] if self.last else 0
        for line in (data or b"").splitlines(keepends=True):
            position = _position(line)
            if position is not None and before < position <= end:
                kept.append(line)
                before = position
        lost = f"{self.num_rows - len(kept)} of the {self.num_rows} rows before the checkpoint"
        if data is None:
            log.warning("%s is missing: %s are lost; training is not affected", self._path, lost)
        else:
            bad = unused(self._folder, f"{self._path.name}.bad")
            write_whole(bad, data)
            log.warning(
                "%s is damaged: %s are lost, others may be wrong; the old file is %s; training is "
                "not affected",
                self._path,
                lost,
                bad.name,
            )
        self.num_rows = len(kept)
        whole = b"".join(kept)
        write_whole(self._path, whole)
        return Extent(len(whole), zlib.crc32(whole))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise cannot_write(self._folder, "the log", reason) from error


class EventFile:
    """The TensorBoard events of a run: a new file for each start.

    The file of a resumed run begins with a copy of the events before the mark. It has one START
    event, its first. On reading it, a TensorBoard that is open discards all it has read of older
    files. A START event within the file is not enough: it discards the events from a given step
    on, and some events count examples as steps, others updates.

    The previous file is emptied, and older files are removed. TensorBoard would not find the next
    file if the one that it reads were removed.

    `tensorboardX.SummaryWriter` is not used: on a full disk its thread dies and the run hangs.

    Args:
      folder: the folder of the event file.
      mark: the mark of the run that is resumed. If it is None, or its file is missing, all rows are
        written.
      rows: the log of the run so far.
    """

    def __init__(self, folder: epath.Path, mark: LogMark | None, rows: "RunLog"):
        folder.mkdir(parents=True, exist_ok=True)
        # An empty folder of an object store does not exist.
        files = list(folder.iterdir()) if folder.exists() else []
        before = sorted(path for path in files if path.name.startswith(EVENTS))
        path = folder / f"{EVENTS}.{time.time_ns()}"
        if mark and (old := _find(before, Extent(*mark["file"]))):
            self._began, self._texts = mark["began"], mark["texts"]
            copy(old, path, mark["file"][0])
            self.file = Growing(path, Extent(*mark["file"]))
        else:
            self._began = time.time() - (rows.last["wall_seconds"] if rows.last else 0.0)
            self._texts: dict[str, int] = {}
            self.file = Growing(path, Extent())
            start = PROTO.SessionLog(status=PROTO.SessionLog.START)
            self._write(
                PROTO.Event(file_version="brain.Event:2"), PROTO.Event(step=0, session_log=start)
            )
            left = rows.rows()
            while some := list(islice(left, ROWS_PER_WRITE)):
                self.write(some)
        for old in before[:-1]:
            old.unlink(missing_ok=True)
        for old in before[-1:]:
            with as_oserror():
                old.write_bytes(b"")

    def write(self, rows: Iterable[Row]) -> None:
        """Writes each finite number against examples seen and against updates; seconds once.

        The wall time of an event is that of the run's own clock, which stands still between an
        interruption and the resume.
        """
        events = []
        for row in rows:
            values: dict[int, list[Any]] = {}
            for name, value in row.items():
                if isinstance(value, numbers.Real) and math.isfinite(value):
                    for tag, step in _series(name, row):
                        values.setdefault(step, []).extend(summary.scalar(tag, value).value)
            wall_time = self._began + row["wall_seconds"]
            events += [
                PROTO.Event(step=step, wall_time=wall_time, summary=SUMMARY(value=some))
                for step, some in values.items()
            ]
        self._write(*events)

    def text(self, name: str, text: str) -> None:
        """Writes a text, unless it was the last one of this name."""
        crc32 = zlib.crc32(text.encode())
        if self._texts.get(name) != crc32:
            self._texts[name] = crc32
            self._write(PROTO.Event(summary=summary.text(name, text)))

    def hyper_parameters(
        self, values: Mapping[str, Any], metrics: Mapping[str, float], examples_seen: int
    ) -> None:
        """Writes the run as a session of the HParams tab, and its metrics as `final/NAME`."""
        metrics = {f"final/{name}": value for name, value in metrics.items()}
        parts = [*summary.hparams(dict(values), metrics)]
        parts += [summary.scalar(name, value) for name, value in metrics.items()]
        self._write(*(PROTO.Event(step=examples_seen, summary=part) for part in parts))

    def mark(self) -> LogMark:
        """Returns what a resume needs to continue here, as JSON."""
        return {"file": list(self.file.extent), "began": self._began, "texts": dict(self._texts)}

    def _write(self, *events: Any) -> None:
        for event in events:
            event.wall_time = event.wall_time or time.time()
        self.file.append(b"".join(_record(event.SerializeToString()) for event in events))


def _find(paths: Iterable[epath.Path], extent: Extent) -> epath.Path | None:
    return next((path for path in paths if holds(path, extent)), None)


def _series(name: str, row: Row) -> list[tuple[str, int]]:
    """The tags of a column, each with its step."""
    if name in ("examples_seen", "updates", "epoch"):
        return []
    if name.endswith("_seconds"):
        return [(f"seconds/{name.removesuffix('_seconds')}", row["examples_seen"])]
    return [(f"by_examples/{name}", row["examples_seen"]), (f"by_updates/{name}", row["updates"])]


def _position(line: bytes) -> int | None:
    """The examples seen of a line, None if it is not a row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    position = row.get("examples_seen") if isinstance(row, dict) else None
    return position if isinstance(position, int) and line.endswith(b"\n") else None


def _record(data: bytes) -> bytes:
    """TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)
