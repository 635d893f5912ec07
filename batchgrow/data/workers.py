"""The host's side of a stream of encoded pictures: worker processes that fill fixed-size pieces.

A piece is `len(positions)` examples of the stream, always; a batch takes as many as it needs, so
nothing here changes when the batch grows. What a piece holds follows from its number alone, never
from how many workers there are or where the stream was started.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags, logging

ON_BAD_RECORD = ("stop", "replace")
# Bad records in a row after which "replace" stops too: then it is not one record that is bad.
MAX_BAD_IN_A_ROW = 8

Piece = dict[str, np.ndarray]


class EncodedSource(Protocol):
    """Random access to `{"image": bytes, "label": int, "file_name": bytes}` (the last optional)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PieceLoader:
    """Reads and decodes one piece. Sent to the workers, so every field must pickle.

    Attributes:
      source: of encoded examples.
      positions: from a piece's number to the stream positions in it, int64 `(piece,)`.
      indices: from stream positions to indices into the source.
      decode: of encoded bytes, by the stream position, into a uint8 `(size, size, 3)`.
      image_size: that size.
      on_bad_record: "stop" raises; "replace" takes the next readable index (the first follows the
        last), under the same position, so that the stream stays what its number says.
    """

    source: EncodedSource
    positions: Callable[[int], np.ndarray]
    indices: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[bytes, int, np.ndarray], None]
    image_size: int
    on_bad_record: str = "stop"

    def __post_init__(self) -> None:
        if self.on_bad_record not in ON_BAD_RECORD:
            raise ValueError(
                f"on_bad_record {self.on_bad_record!r} is none of {', '.join(ON_BAD_RECORD)}"
            )

    def __call__(self, number: int) -> dict[str, Any]:
        """`{"image": uint8 (piece, h, w, 3), "label": int32, "position": uint32, "bad": tuple}`.

        "bad" holds a line for each record that was replaced.

        Raises:
          ValueError: for a record that cannot be read or decoded, with its index and file name.
        """
        cv2.setNumThreads(1)  # the workers are the parallelism
        positions = self.positions(number)
        indices = self.indices(positions)
        image = np.empty((len(positions), self.image_size, self.image_size, 3), np.uint8)
        label = np.empty(len(positions), np.int32)
        bad: list[str] = []
        for i in range(len(positions)):
            label[i] = self._read(int(indices[i]), int(positions[i]), image[i], bad)
        return {
            "image": image,
            "label": label,
            "position": positions.astype(np.uint32),
            "bad": tuple(bad),
        }

    def _read(self, index: int, position: int, image: np.ndarray, bad: list[str]) -> int:
        """Fills `image` and returns the label."""
        for _ in range(MAX_BAD_IN_A_ROW):
            file_name = "unread"
            try:
                example = self.source[index]
                file_name = example.get("file_name", b"unnamed")
                self.decode(example["image"], position, image)
                return int(example["label"])
            except Exception as error:  # whatever the source or the decoder raises for a bad record
                name = file_name.decode() if isinstance(file_name, bytes) else file_name
                line = f"record {index} ({name}): {type(error).__name__}: {error}"
                if self.on_bad_record == "stop":
                    raise ValueError(
                        f'{line}; repair it, or set on_bad_record="replace"'
                    ) from error
                bad.append(line)
                index = (index + 1) % len(self.source)
        raise ValueError(f"{MAX_BAD_IN_A_ROW} bad records in a row, the last: {bad[-1]}")


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
        /dev/shm for `num_workers * (prefetch + 1)` pieces.
      prefetch: pieces that each worker keeps ready.

    Raises:
      ValueError: while iterating, for a bad record (see PieceLoader).
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
            pieces = pieces.mp_prefetch(options)
        self._pieces = iter(pieces)

    def __next__(self) -> Piece:
        piece = next(self._pieces)
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
    decode: Callable[[bytes, int, np.ndarray], None],
    *,
    image_size: int,
    piece_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Piece]:
    """Every example of `source` once, in order, over all processes together.

    Every process yields the same number of pieces, as collective evaluation needs; the places
    beyond the last example repeat it with `mask` 0.

    Yields:
      `{"image": uint8 (piece, h, w, 3), "label": int32, "mask": float32}`.
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
        decode,
        image_size,
    )
    num_pieces = -(-num_examples // (piece_size * process_count))
    with PieceStream(load, stop=num_pieces, num_workers=num_workers) as pieces:
        for piece in pieces:
            mask = (piece.pop("position") < num_examples).astype(np.float32)
            yield {**piece, "mask": mask}
