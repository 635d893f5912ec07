"""What the host sends to the devices for each dispatch."""

from typing import Any, Protocol

import jax
import numpy as np

from batchgrow.data.datasets import Dataset, InMemory
from batchgrow.data.stream import Stream

HostBatch = dict[str, Any]


class Feed(Protocol):
    """Where training batches come from.

    Attributes:
      arrays: host arrays that every device holds, or ().
      example: an example as the host sends it, a pytree of `jax.ShapeDtypeStruct`s.
    """

    arrays: Any
    example: HostBatch

    def batch(self, positions: np.ndarray) -> HostBatch:
        """What the host sends for these stream positions, arrays `(*positions.shape, ...)`.

        Raises:
          RuntimeError: for an example that cannot be read.
        """
        ...

    def examples(self, batch: HostBatch, arrays: Any) -> Any:
        """From what the host sent, and `arrays`, to what the task takes; traced in the step."""
        ...

    def read_ahead(self, positions: np.ndarray) -> bool:
        """Starts to read what `batch` will be asked for next, in the same order.

        Returns whether it wants to read further ahead.
        """
        ...

    def close(self) -> None:
        """Ends what reads in the background."""
        ...


class ResidentFeed:
    """The devices hold the whole training set, and the host sends indices only.

    Args:
      data: the training set.
      stream: which example comes at each position.
    """

    def __init__(self, data: InMemory, stream: Stream):
        self.arrays = data.arrays
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

    def read_ahead(self, positions: np.ndarray) -> bool:
        return False

    def close(self) -> None:
        pass


class StreamedFeed:
    """The host sends the examples of each update; the devices hold none.

    Args:
      data: the training set.
      stream: which example comes at each position.
    """

    def __init__(self, data: Dataset, stream: Stream):
        self.arrays = ()
        self.example: HostBatch = {
            "examples": example_of(data),
            "position": jax.ShapeDtypeStruct((), np.uint32),
        }
        self._data = data
        self._stream = stream

    def batch(self, positions: np.ndarray) -> HostBatch:
        examples = self._data.gather(self._stream.indices(positions))
        return {"examples": examples, "position": positions.astype(np.uint32)}

    def examples(self, batch: HostBatch, arrays: Any) -> Any:
        return batch["examples"]

    def read_ahead(self, positions: np.ndarray) -> bool:
        return False

    def close(self) -> None:
        pass


def example_of(data: Dataset) -> Any:
    """The shapes and dtypes of one example, a pytree of `jax.ShapeDtypeStruct`s."""
    first = data.gather(np.zeros(1, np.int64))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), first)
