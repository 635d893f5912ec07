"""What the host sends to the devices for each update."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from batchgrow.data.sources import Images
from batchgrow.data.stream import Stream
from batchgrow.data.workers import PieceLoader, PieceStream

HostBatch = dict[str, np.ndarray]
# Of each part of a batch: the shape of one example, and its dtype.
Spec = dict[str, tuple[tuple[int, ...], Any]]


class Feed(Protocol):
    """Where training batches come from.

    Attributes:
      dataset: host arrays that are to lie on every device, or ().
      spec: the parts of a batch.
    """

    dataset: Any
    spec: Spec

    def batch(self, positions: np.ndarray) -> HostBatch:
        """The examples at these stream positions, in arrays of shape `(*positions.shape, ...)`."""
        ...

    def close(self) -> None:
        """Ends what reads in the background."""
        ...


class ResidentFeed:
    """The whole data set lives on the device, and the host sends indices only.

    Args:
      images: the training split.
      seed: of the stream's order.
    """

    def __init__(self, images: Images, seed: int):
        self.dataset = {"image": images.image, "label": images.label}
        self.spec: Spec = {"index": ((), np.int32), "position": ((), np.uint32)}
        self._stream = Stream(len(images), seed)

    def batch(self, positions: np.ndarray) -> HostBatch:
        """`{"index": int32, "position": uint32}`, both shaped as `positions`."""
        return {
            "index": self._stream.indices(positions).astype(np.int32),
            "position": positions.astype(np.uint32),
        }

    def close(self) -> None:
        """Nothing reads in the background."""


class StreamedFeed:
    """The host sends the decoded examples of each update; the devices hold none.

    Args:
      source: random access to `{"image": uint8 (h, w, c), "label": int}`.
      seed: of the stream's order.
    """

    def __init__(self, source: Any, seed: int):
        self.dataset = ()
        self._source = source
        self.spec = _image_spec(source[0]["image"].shape)
        self._stream = Stream(len(source), seed)

    def batch(self, positions: np.ndarray) -> HostBatch:
        """`{"image": uint8 (*shape, h, w, c), "label": int32, "position": uint32}`."""
        examples = [self._source[int(i)] for i in self._stream.indices(positions).ravel()]
        image = np.stack([example["image"] for example in examples])
        label = np.array([example["label"] for example in examples], np.int32)
        return {
            "image": image.reshape(*positions.shape, *image.shape[1:]),
            "label": label.reshape(positions.shape),
            "position": positions.astype(np.uint32),
        }

    def close(self) -> None:
        """Nothing reads in the background."""


@dataclass(frozen=True)
class Share:
    """The stream positions that one process consumes, in the order in which it does.

    In each pass a process takes one run of consecutive positions, which its devices share. So the
    run of a phase is a plain sequence of pieces, and growth changes only how many make an update.

    Attributes:
      start_examples: where each phase starts in the stream.
      pass_size: examples of one pass of all processes, by phase; of a phase that is over any number
        whose share is whole pieces, since nothing reads it any more.
      first, count: this process's place in a pass, in devices, and how many it drives.
      num_devices: of all processes.
      piece_size: examples of a piece; divides every run.
      end_examples: where the last phase ends.
    """

    start_examples: tuple[int, ...]
    pass_size: tuple[int, ...]
    first: int
    count: int
    num_devices: int
    piece_size: int
    end_examples: int

    def __call__(self, number: int) -> np.ndarray:
        """Stream positions of this process's piece, int64 `(piece_size,)`."""
        for start, end, size in self._phases():
            per_pass = self._per_pass(size)
            pieces = (end - start) // size * per_pass
            if number < pieces:
                passes, piece = divmod(number, per_pass)
                offset = size * self.first // self.num_devices + piece * self.piece_size
                return start + passes * size + offset + np.arange(self.piece_size)
            number -= pieces
        raise IndexError(f"piece {number} lies beyond the end of the run")

    def number(self, position: int) -> int:
        """The piece that begins at this stream position, which must be this process's."""
        before = 0
        for start, end, size in self._phases():
            per_pass = self._per_pass(size)
            if position < end:
                passes, inside = divmod(position - start, size)
                offset = inside - size * self.first // self.num_devices
                return before + passes * per_pass + offset // self.piece_size
            before += (end - start) // size * per_pass
        raise IndexError(f"position {position} lies beyond the end of the run")

    @property
    def num_pieces(self) -> int:
        """Pieces of the whole run."""
        return sum(
            (end - start) // size * self._per_pass(size) for start, end, size in self._phases()
        )

    def _per_pass(self, size: int) -> int:
        """Pieces that this process takes from a pass of so many examples."""
        return size * self.count // self.num_devices // self.piece_size

    def _phases(self) -> Iterator[tuple[int, int, int]]:
        ends = (*self.start_examples[1:], self.end_examples)
        return zip(self.start_examples, ends, self.pass_size, strict=True)


class PieceFeed:
    """Worker processes decode a constant stream of pieces, read ahead over every growth.

    Args:
      load: of one piece; its `positions` are replaced by the share's.
      share: the positions that this process consumes.
      num_workers: processes; 0 for a thread.
    """

    def __init__(self, load: PieceLoader, share: Share, num_workers: int):
        self.dataset = ()
        self.spec = _image_spec((load.image_size, load.image_size, 3))
        self._load = replace(load, positions=share)
        self._share = share
        self._num_workers = num_workers
        self._pieces: PieceStream | None = None
        self._next = 0

    @property
    def num_replaced(self) -> int:
        """Bad records that were replaced since this process started."""
        return self._pieces.num_replaced if self._pieces is not None else 0

    def batch(self, positions: np.ndarray) -> HostBatch:
        """`{"image": uint8 (*shape, h, w, 3), "label": int32, "position": uint32}`.

        Args:
          positions: `(local_devices, updates, microbatches, microbatch)`; those that follow the
            last call's, or the stream starts anew there.

        Raises:
          BadRecordError: for a record that cannot be read or decoded.
        """
        in_order = np.moveaxis(positions, 0, -2)
        flat = in_order.ravel()
        number = self._share.number(int(flat[0]))
        if self._pieces is None or number != self._next:
            self.close()
            self._pieces = PieceStream(
                self._load,
                start=number,
                stop=self._share.num_pieces,
                num_workers=self._num_workers,
            )
        count = flat.size // self._share.piece_size
        pieces = [next(self._pieces) for _ in range(count)]
        self._next = number + count
        batch = {name: _join(pieces, name, in_order.shape) for name in self.spec}
        if not np.array_equal(batch["position"], positions):
            raise AssertionError("the workers' stream and the schedule disagree")
        return batch

    def close(self) -> None:
        """Stops the workers."""
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None


def _join(pieces: Sequence[HostBatch], name: str, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.concatenate([piece[name] for piece in pieces])
    return np.moveaxis(whole.reshape(*shape, *whole.shape[1:]), len(shape) - 2, 0)


def _image_spec(shape: tuple[int, ...]) -> Spec:
    return {"image": (shape, np.uint8), "label": ((), np.int32), "position": ((), np.uint32)}


def padded_batches(images: Images, batch_size: int) -> Iterator[HostBatch]:
    """Every test example once, in batches of one size; the last is padded and masked.

    Yields:
      `{"image": uint8 (batch_size, h, w, c), "label": int32, "mask": float32}`.
    """
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = (index < len(images)).astype(np.float32)
        index = np.minimum(index, len(images) - 1)
        yield {"image": images.image[index], "label": images.label[index], "mask": mask}
