"""The arrays that the host sends to the devices for each dispatch."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from batchgrow.data.datasets import ArrayDataset, Dataset, InMemory, evaluation_batches
from batchgrow.data.jpeg_dataset import JpegDataset
from batchgrow.data.stream import Stream
from batchgrow.devices import bytes_of
from batchgrow.layout import shard

HostBatch = dict[str, Any]

MAX_LENGTH = 2**31 - 1  # of an array that devices hold: its indices are int32


class Feed(Protocol):
    """The source of training batches.

    A feed that reads in the background also has `read_ahead(positions)`. It starts to read
    these positions, which must be the next arguments of `batch` in the same order. It returns
    whether there was room for them.

    Attributes:
      arrays: host arrays that every device holds, or ().
      example: an example as the host sends it, a pytree of `jax.ShapeDtypeStruct`s.
    """

    arrays: Any
    example: HostBatch

    def batch(self, positions: np.ndarray) -> HostBatch:
        """Returns what the host sends for these positions: arrays `(*positions.shape, ...)`.

        Raises:
          RuntimeError: for an example that cannot be read.
        """
        ...

    def examples(self, batch: HostBatch, arrays: Any) -> Any:
        """Turns what the host sent, and `arrays`, into the task's examples; traced in the step."""
        ...

    def peek(self, positions: np.ndarray) -> HostBatch:
        """Like `batch`, for any positions. It leaves examples that were read ahead as they are."""
        ...

    def close(self) -> None:
        """Ends reading in the background."""
        ...


class ResidentFeed:
    """The devices hold the whole training set, and the host sends indices only.

    Args:
      data: the training set. The devices hold its `arrays`, or `rows` of an `ArrayDataset`.
      stream: gives the example at each position.
    """

    def __init__(self, data: InMemory, stream: Stream):
        self.arrays = data.rows if isinstance(data, ArrayDataset) else data.arrays
        self.example: HostBatch = {
            "index": jax.ShapeDtypeStruct((), np.int32),
            "position": jax.ShapeDtypeStruct((), np.uint32),
        }
        self._data = data
        self._stream = stream

    def batch(self, positions: np.ndarray) -> HostBatch:
        index = self._stream.indices(positions).astype(np.int32)
        return {"index": index, "position": positions.astype(np.uint32)}

    def examples(self, batch: HostBatch, arrays: Any) -> Any:
        return self._data.take(arrays, batch["index"])

    def peek(self, positions: np.ndarray) -> HostBatch:
        return self.batch(positions)

    def close(self) -> None:
        pass


class StreamedFeed:
    """The host sends the examples of each update; the devices hold none.

    Args:
      data: the training set.
      stream: gives the example at each position.
    """

    def __init__(self, data: Dataset, stream: Stream):
        self.arrays = ()
        self.example: HostBatch = {
            "examples": data.example,
            "position": jax.ShapeDtypeStruct((), np.uint32),
        }
        self._data = data
        self._stream = stream

    def batch(self, positions: np.ndarray) -> HostBatch:
        examples = self._data.gather(self._stream.indices(positions))
        return {"examples": examples, "position": positions.astype(np.uint32)}

    def examples(self, batch: HostBatch, arrays: Any) -> Any:
        return batch["examples"]

    def peek(self, positions: np.ndarray) -> HostBatch:
        return self.batch(positions)

    def close(self) -> None:
        pass


def make_feed(data: Dataset, seed: int, kind: str, num_workers: int = 0) -> Feed:
    """Returns the feed of a training set.

    Args:
      data: the training set.
      seed: determines the order of the stream.
      kind: "resident", "streamed" or "workers" (see `Execution.input`).
      num_workers: worker processes; 0 for a thread.

    Raises:
      ValueError: if the data set cannot be fed in this way.
    """
    stream = Stream(data.num_examples, seed)
    if kind == "workers":
        if not isinstance(data, JpegDataset):
            raise ValueError(
                "run.input is 'workers', but the examples are not encoded images; set it to "
                "'resident' or 'streamed'"
            )
        return data.feed(stream, num_workers)
    if kind == "streamed":
        return StreamedFeed(data, stream)
    if not isinstance(data, InMemory):
        raise ValueError(
            "run.input is 'resident', but the training set is not held in memory; set it to "
            "'streamed', or to 'workers' for encoded images"
        )
    feed = ResidentFeed(data, stream)
    longest = max((n for x in jax.tree.leaves(feed.arrays) for n in np.shape(x)), default=0)
    if longest > MAX_LENGTH:
        raise ValueError(
            f"run.input is 'resident', but an array of the training set has {longest:,} entries, "
            f"and devices index at most {MAX_LENGTH:,}; set it to 'streamed'"
        )
    return feed


class EvaluationBatches:
    """Iterates over the test set in batches on the devices: `{"examples", "mask"}`.

    Args:
      data: the test set.
      batch_size: examples of a batch on all devices, rounded up to whole devices.
      num_workers: worker processes for encoded images.
      mesh: the devices.
      stays: whether the devices keep the batches of a test set that is held in memory.

    Attributes:
      batch_size: examples of a batch on all devices.
      shapes: the shapes and dtypes of a batch.
    """

    def __init__(self, data: Dataset, batch_size: int, num_workers: int, mesh: Mesh, stays: bool):
        self._data, self._num_workers, self._mesh = data, num_workers, mesh
        self._stays = stays and isinstance(data, InMemory)
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._on_devices: list[Any] | None = None
        self.shapes = {
            "examples": jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape), x.dtype), data.example
            ),
            "mask": jax.ShapeDtypeStruct((self.batch_size,), np.float32),
        }

    def held_bytes(self) -> int:
        """Bytes of each device that hold the test set throughout a run."""
        if not self._stays:
            return 0
        num_batches = -(-self._data.num_examples // self.batch_size)
        return num_batches * bytes_of(self.shapes) // self._mesh.size

    def __iter__(self) -> Any:
        if not self._stays:
            return (shard(batch, self._mesh) for batch in self._on_host())
        if self._on_devices is None:
            self._on_devices = [shard(batch, self._mesh) for batch in self._on_host()]
        return iter(self._on_devices)

    def _on_host(self) -> Iterable[Any]:
        place = jax.process_index(), jax.process_count()
        if isinstance(self._data, JpegDataset):
            return self._data.batches(self.batch_size, self._num_workers, *place)
        return evaluation_batches(self._data, self.batch_size, *place)
