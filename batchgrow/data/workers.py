"""Worker processes that read, crop and decode JPEG examples.

A worker knows a data source and how to decode it. The main process sends it indices and stream
positions; the worker writes the images to memory that both share. See `worker_feed.py` for what is
sent to which worker.
"""

import math
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from batchgrow.data import jpeg
from batchgrow.data.records import ON_BAD_RECORD, BadRecordError

# "replace" gives up after this many bad records in a row: the data set itself is then damaged.
MAX_BAD_IN_A_ROW = 8

# The signals that ask a run to stop. A terminal and SLURM also send them to the workers, which must
# go on: the run needs them until it has finished its update.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_REPAIR = "repair the file, or, for training data, set data.on_bad_record to 'replace'"


class EncodedSource(Protocol):
    """Random access to `{"image": bytes, "label": int, "file_name": bytes}` (the last optional)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Replaced(NamedTuple):
    """A bad record that was replaced: the stream position, and what is wrong with the record."""

    position: int
    line: str


class _Record(NamedTuple):
    index: int
    file_name: str
    encoded: bytes
    label: int
    crop: jpeg.Crop


@dataclass(frozen=True)
class JpegLoader:
    """Reads and decodes examples. It is sent to the workers, so every field must pickle.

    Attributes:
      source: the encoded examples.
      crop: returns the crop of an image from its encoded bytes and its stream position.
      image_size: height and width of the decoded images, in pixels.
      on_bad_record: "stop" raises an error. "replace" takes the next readable example of the source
        (the first one follows the last one) at the same stream position.
      num_classes: the number of classes. A label that is not in `range(num_classes)` always raises
        an error. None allows every label.
    """

    source: EncodedSource
    crop: Callable[[bytes, int], jpeg.Crop]
    image_size: int
    on_bad_record: str = "stop"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.on_bad_record not in ON_BAD_RECORD:
            choices = " or ".join(map(repr, ON_BAD_RECORD))
            raise ValueError(f"on_bad_record is {self.on_bad_record!r}; it must be {choices}")

    def __call__(
        self, indices: np.ndarray, positions: np.ndarray, images: np.ndarray
    ) -> tuple[np.ndarray, list[Replaced]]:
        """Decodes the examples at `indices` into `images`.

        Args:
          indices: the indices of examples in the source, int64 `(n,)`.
          positions: stream positions of these examples, int64 `(n,)`; they determine the crops.
          images: where to write, uint8 `(n, image_size, image_size, 3)`.

        Returns:
          The labels, int32 `(n,)`, and the records that were replaced.

        Raises:
          BadRecordError: if a record cannot be read or decoded, or has a label that is no class.
        """
        pairs = list(zip(indices.tolist(), positions.tolist(), strict=True))
        # Read everything, then decode everything. Alternating takes 20% longer, because each evicts
        # the other's code from the processor's caches.
        records = [self._read(index, position) for index, position in pairs]
        labels, replaced = np.empty(len(pairs), np.int32), []
        for i, (record, (_, position)) in enumerate(zip(records, pairs, strict=True)):
            bad: list[str] = []
            labels[i] = self._decode(record, position, images[i], bad)
            replaced += [Replaced(position, line) for line in bad]
        return labels, replaced

    def gather(self, indices: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns examples in new arrays.

        Args:
          indices, positions: as in a call, but both int64 of any one shape.

        Returns:
          `{"image": uint8 (*shape, image_size, image_size, 3), "label": int32 (*shape,)}`.

        Raises:
          BadRecordError: as a call.
        """
        images = np.empty((indices.size, self.image_size, self.image_size, 3), np.uint8)
        labels, _ = self(indices.ravel(), positions.ravel(), images)
        shape = indices.shape
        return {"image": images.reshape(*shape, *images.shape[1:]), "label": labels.reshape(shape)}

    def _read(self, index: int, position: int) -> _Record | BadRecordError:
        """The record and its crop, or the reason why it is bad."""
        name = "name unknown"
        try:
            example = self.source[index]
            stored = example.get("file_name", b"unnamed")
            name = stored.decode() if isinstance(stored, bytes) else str(stored)
            encoded = example["image"]
            crop = self.crop(encoded, position)
            return _Record(index, name, encoded, int(example["label"]), crop)
        except ValueError as error:
            return BadRecordError(index, name, str(error))
        except Exception as error:  # sources raise errors of any type
            return BadRecordError(index, name, f"{type(error).__name__}: {error}")

    def _decode(
        self,
        record: _Record | BadRecordError,
        position: int,
        image: np.ndarray,
        bad: list[str],
    ) -> int:
        """Fills `image` and returns the label. Adds a line to `bad` for each replaced record."""
        for attempt in range(1, MAX_BAD_IN_A_ROW + 1):
            if isinstance(record, _Record):
                try:
                    jpeg.draw(record.encoded, record.crop, image)
                except (ValueError, cv2.error) as error:
                    record = BadRecordError(record.index, record.file_name, str(error))
                else:
                    self._check_label(record)
                    return record.label
            if self.on_bad_record == "stop":
                raise BadRecordError(record.index, record.file_name, f"{record.reason}; {_REPAIR}")
            bad.append(str(record))
            if attempt < MAX_BAD_IN_A_ROW:
                record = self._read((record.index + 1) % len(self.source), position)
        assert isinstance(record, BadRecordError)
        reason = f"{record.reason}; {MAX_BAD_IN_A_ROW} records in a row are bad; check the data set"
        raise BadRecordError(record.index, record.file_name, reason)

    def _check_label(self, record: _Record) -> None:
        label, count = record.label, self.num_classes
        if count is None or 0 <= label < count:
            return
        remedy = "use a split that has labels"
        if label >= 0:
            remedy = f"set the field to {label + 1} or more"
        reason = f"its label is {label}, but model.num_classes is {count}; {remedy}"
        raise BadRecordError(record.index, record.file_name, reason)


class SharedImages:
    """Memory for images that worker processes write to. It has no name and leaves no file.

    Args:
      shape: the shape of `array`, which is uint8.
    """

    def __init__(self, shape: tuple[int, ...]):
        # Unlike /dev/shm, which is small in many containers, this has no limit of its own.
        linux = hasattr(os, "memfd_create")
        self.file = open(os.memfd_create("images"), "r+b") if linux else tempfile.TemporaryFile()
        self.file.truncate(math.prod(shape))
        self.array = _map(self.file.fileno(), shape)

    def close(self) -> None:
        """Closes the file. The memory is freed with the last array that uses it."""
        self.file.close()


def _map(fd: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(fd, math.prod(shape)), np.uint8).reshape(shape)


class Worker:
    """A process that decodes examples on request. It ends with `close` or with this process.

    It ignores SIGINT and SIGTERM from its first moment, as it starts with both blocked. It does not
    import the main module, so a program needs no `if __name__ == "__main__":`.

    Args:
      load: a pickled `JpegLoader`.
      memory: its array has the shape `(slots, examples, image_size, image_size, 3)`.
    """

    def __init__(self, load: bytes, memory: SharedImages):
        self._connection, theirs = Pipe()
        fds = theirs.fileno(), memory.file.fileno()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve{fds}"
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the child inherits it
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], pass_fds=fds, stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._first_message: tuple[bytes, tuple[int, ...]] | None = (load, memory.array.shape)

    def __call__(
        self, slot: int, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, list[Replaced]]:
        """Decodes examples into a slot of the shared memory, and waits for that.

        Returns and raises what `JpegLoader.__call__` does, and

        Raises:
          RuntimeError: if the process has ended, or cannot load the data source.
        """
        try:
            if self._first_message is not None:
                self._connection.send(self._first_message)
                self._first_message = None
            self._connection.send((slot, indices, positions))
            reply = self._connection.recv()
        except (EOFError, OSError) as error:
            status = self.process.wait()
            raise RuntimeError(
                f"a worker process that decodes images ended with status {status}; if the system "
                "killed it (-9) for lack of memory, lower run.num_workers"
            ) from error
        if isinstance(reply, Exception):
            raise reply
        return reply

    def kill(self) -> None:
        """Ends the process at once, as it has nothing to save. A call under way raises an error."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ends the process and closes the connection to it; no call may be under way."""
        self.kill()
        self._connection.close()


def serve(connection_fd: int, memory_fd: int) -> None:
    """The main loop of a worker process: decodes requests until its parent has ended."""
    threading.Thread(target=_exit_with_parent, args=(connection_fd,), daemon=True).start()
    cv2.setNumThreads(1)  # the processes are the parallelism
    connection = Connection(connection_fd)
    try:
        pickled, shape = connection.recv()
        images, load = _map(memory_fd, shape), _unpickle(pickled)
        while True:
            slot, indices, positions = connection.recv()
            connection.send(_reply(load, indices, positions, images[slot, : len(indices)]))
    except (EOFError, OSError):
        return  # the connection was closed


def _unpickle(pickled: bytes) -> JpegLoader | Exception:
    try:
        return pickle.loads(pickled)
    except Exception as error:
        return RuntimeError(
            f"a worker process cannot load the data source ({type(error).__name__}: {error}); "
            "define its class in a module that can be imported, or set run.num_workers to 0"
        )


def _reply(
    load: JpegLoader | Exception, indices: np.ndarray, positions: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, list[Replaced]] | Exception:
    if isinstance(load, Exception):
        return load
    try:
        return load(indices, positions, images)
    except BadRecordError as error:
        return error


def _exit_with_parent(connection_fd: int) -> None:
    """Ends this process when the other end of the connection is closed, whatever it is doing."""
    poll = select.poll()
    poll.register(connection_fd, 0)  # reports only that the other end is closed
    poll.poll()
    os._exit(0)
