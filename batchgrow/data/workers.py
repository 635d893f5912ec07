"""The host's side of a stream of encoded pictures: worker processes that fill fixed-size pieces.

A piece is `len(positions)` examples of the stream, always; a batch takes as many as it needs, so
nothing here changes when the batch grows. What a piece holds follows from its number alone, never
from how many workers there are or where the stream was started.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags, logging

from batchgrow.data import imagenet
from batchgrow.data.sources import ON_BAD_RECORD, BadRecordError

# Bad records in a row after which "replace" stops too: then it is not one record that is bad.
MAX_BAD_IN_A_ROW = 8

# What asks a run to stop. A terminal and SLURM send them to the workers too, which the run needs
# until it has finished its update.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Piece = dict[str, np.ndarray]


class EncodedSource(Protocol):
    """Random access to `{"image": bytes, "label": int, "file_name": bytes}` (the last optional)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Record:
    index: int
    file_name: str
    jpeg: bytes
    label: int
    crop: imagenet.Crop


@dataclass(frozen=True)
class PieceLoader:
    """Reads and decodes one piece. Sent to the workers, so every field must pickle.

    Attributes:
      source: of encoded examples.
      positions: from a piece's number to the stream positions in it, int64 `(piece,)`.
      indices: from stream positions to indices into the source.
      crop: of encoded bytes, by the stream position.
      image_size: of the result, pixels.
      on_bad_record: "stop" raises; "replace" takes the next readable index (the first follows the
        last), under the same position, so that the stream stays what its number says.
      num_classes: of the model, which would train on another label without a word; such a label
        always raises. None takes any.
    """

    source: EncodedSource
    positions: Callable[[int], np.ndarray]
    indices: Callable[[np.ndarray], np.ndarray]
    crop: Callable[[bytes, int], imagenet.Crop]
    image_size: int
    on_bad_record: str = "stop"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.on_bad_record not in ON_BAD_RECORD:
            raise ValueError(
                f"on_bad_record {self.on_bad_record!r} is none of {', '.join(ON_BAD_RECORD)}"
            )

    def __call__(self, number: int) -> dict[str, Any]:
        """`{"image": uint8 (piece, h, w, 3), "label": int32, "position": uint32, "bad": tuple}`.

        "bad" holds a line for each record that was replaced.

        Raises:
          BadRecordError: for a record that cannot be read or decoded, or whose label is no class.
        """
        cv2.setNumThreads(1)  # the workers are the parallelism
        positions = self.positions(number)
        # All is read before anything is decoded: taking turns, each evicts the other's code from
        # the processor's caches, which costs a fifth of the time.
        pairs = zip(self.indices(positions).tolist(), positions.tolist(), strict=True)
        records = [self._read(index, position) for index, position in pairs]
        image = np.empty((len(positions), self.image_size, self.image_size, 3), np.uint8)
        label = np.empty(len(positions), np.int32)
        bad: list[str] = []
        for i, record in enumerate(records):
            label[i] = self._draw(record, int(positions[i]), image[i], bad)
        return {
            "image": image,
            "label": label,
            "position": positions.astype(np.uint32),
            "bad": tuple(bad),
        }

    def _read(self, index: int, position: int) -> _Record | BadRecordError:
        """A record with its crop, or what is wrong with it."""
        name = "name unknown"
        try:
            example = self.source[index]
            stored = example.get("file_name", b"unnamed")
            name = stored.decode() if isinstance(stored, bytes) else str(stored)
            jpeg = example["image"]
            return _Record(index, name, jpeg, int(example["label"]), self.crop(jpeg, position))
        except Exception as error:  # a source raises what it likes
            return BadRecordError(index, name, f"{type(error).__name__}: {error}")

    def _draw(
        self, record: _Record | BadRecordError, position: int, image: np.ndarray, bad: list[str]
    ) -> int:
        """Fills `image` and returns the label."""
        last = record
        for _ in range(MAX_BAD_IN_A_ROW):
            if isinstance(record, _Record):
                try:
                    imagenet.draw(record.jpeg, record.crop, image)
                except (ValueError, cv2.error) as error:
                    record = BadRecordError(record.index, record.file_name, str(error))
                else:
                    self._check_label(record)
                    return record.label
            if self.on_bad_record == "stop":
                raise record
            bad.append(str(record))
            last = record
            record = self._read((record.index + 1) % len(self.source), position)
        reason = f"the last of {MAX_BAD_IN_A_ROW} bad records in a row: {bad[-1]}"
        raise BadRecordError(last.index, last.file_name, reason)

    def _check_label(self, record: _Record) -> None:
        """Raises BadRecordError for a label that is no class of the model."""
        label, count = record.label, self.num_classes
        if count is None or 0 <= label < count:
            return
        remedy = "take a split whose examples are labelled"
        if label >= 0:
            remedy = f"set the field to {label + 1} or more"
        reason = f"model.num_classes is {count}, but its label is {label}; {remedy}"
        raise BadRecordError(record.index, record.file_name, reason)


def _init_worker(index: int, count: int) -> None:
    """Ties a worker's life to the process that reads from it, and to nothing else."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this worker when its parent was killed, which then could not close it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _first_piece(pieces: Iterator[Any]) -> Any:
    """`next(pieces)`, which starts the workers, such that a signal cannot end them at any time.

    They inherit the blocked signals of the thread that starts them; `_init_worker` alone would come
    too late, after all imports. This thread goes on receiving signals.
    """
    # Its start would unblock the signals again, in the thread that has it started.
    resource_tracker.ensure_running()
    executor = ThreadPoolExecutor(1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        piece: Future[Any] = executor.submit(next, pieces)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        executor.shutdown(wait=False)
    return piece.result()


class PieceStream(Iterator[Piece]):
    """Pieces `start`, `start + 1`, ... in order, read ahead; a context manager.

    `{"image": uint8 (piece, h, w, 3), "label": int32 (piece,), "position": uint32 (piece,)}`; from
    workers the arrays arrive through shared memory. `num_replaced` counts the bad records that were
    replaced in the pieces handed out so far; each is also logged.

    Args:
      load: of one piece.
      start: the number of the first piece; nothing before it is read.
      stop: the number after the last.
      num_workers: processes; 0 for a thread of this one. A program that uses them guards its start
        by `if __name__ == "__main__":`, since they import its main module, and needs room in
        /dev/shm for `num_workers * (prefetch + 1)` pieces. They ignore SIGINT and SIGTERM, and end
        with `close` or with this process.
      prefetch: pieces that each worker keeps ready.

    Raises:
      BadRecordError: while iterating, unless the loader replaces such records.
    """

    def __init__(
        self,
        load: PieceLoader,
        *,
        start: int = 0,
        stop: int = 2**40,
        num_workers: int = 0,
        prefetch: int = 2,
    ):
        if not flags.FLAGS.is_parsed():
            # Grain reads its own flags; a program without `app.run` has none to set.
            flags.FLAGS.mark_as_parsed()
        self.num_replaced = 0
        threads = 0 if num_workers else 1
        numbers = grain.MapDataset.range(start, stop).map(load)
        pieces = numbers.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch * threads)
        )
        if num_workers:
            options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=prefetch)
            pieces = pieces.mp_prefetch(options, worker_init_fn=_init_worker)
        self._pieces = iter(pieces)
        self._next = _first_piece if num_workers else next

    def __next__(self) -> Piece:
        piece = self._next(self._pieces)
        self._next = next
        for line in piece.pop("bad"):
            self.num_replaced += 1
            logging.warning("replaced %s", line)
        return piece

    def close(self) -> None:
        """Stops the workers; pieces that they had ready are dropped."""
        self._pieces.close()

    def __enter__(self) -> "PieceStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def process_positions(
    number: int, piece_size: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Stream positions of a process's piece, int64 (piece_size,): pieces go round the processes.

    >>> process_positions(1, piece_size=2, process_index=0, process_count=3).tolist()
    [6, 7]
    """
    first = (number * process_count + process_index) * piece_size
    return np.arange(first, first + piece_size)


def evaluation_pieces(
    source: EncodedSource,
    crop: Callable[[bytes, int], imagenet.Crop],
    *,
    image_size: int,
    piece_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_classes: int | None = None,
) -> Iterator[Piece]:
    """Every example of `source` once, in order, over all processes together.

    Every process yields the same number of pieces, as collective evaluation needs; the places
    beyond the last example repeat it with `mask` 0. A bad record always stops it, whatever
    data.on_bad_record says: an accuracy on other examples would be no test accuracy.
    `num_classes` is as in `PieceLoader`.

    Yields:
      `{"image": uint8 (piece, h, w, 3), "label": int32, "mask": float32}`.

    Raises:
      BadRecordError: while iterating, as `PieceLoader`.
    """
    num_examples = len(source)
    load = PieceLoader(
        source,
        partial(
            process_positions,
            piece_size=piece_size,
            process_index=process_index,
            process_count=process_count,
        ),
        partial(np.minimum, num_examples - 1),
        crop,
        image_size,
        num_classes=num_classes,
    )
    num_pieces = -(-num_examples // (piece_size * process_count))
    with PieceStream(load, stop=num_pieces, num_workers=num_workers) as pieces:
        for piece in pieces:
            mask = (piece.pop("position") < num_examples).astype(np.float32)
            yield {**piece, "mask": mask}
