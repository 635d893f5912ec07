"""Data sets: examples by index, in memory or from a source that gives one example at a time."""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from batchgrow.data.stream import RandomAccess, take

Batch = Any  # a pytree of arrays whose leading axes count examples


class Dataset(Protocol):
    """Examples by index.

    A data set may also have `facts`, a mapping such as {"num_classes": 10}. They fill those fields
    of the model and of the task that have the same names and that the config leaves out.
    """

    @property
    def num_examples(self) -> int:
        """The number of examples N."""
        ...

    @property
    def example(self) -> Any:
        """The shapes and dtypes of one example, a pytree of `jax.ShapeDtypeStruct`."""
        ...

    def gather(self, indices: np.ndarray) -> Batch:
        """Returns the examples at these indices: NumPy arrays `(*indices.shape, ...)`."""
        ...


@runtime_checkable
class InMemory(Dataset, Protocol):
    """A data set of arrays, which devices can hold too.

    Attributes:
      arrays: a pytree of NumPy arrays.
    """

    @property
    def arrays(self) -> Any: ...

    def take(self, arrays: Any, indices: Any) -> Batch:
        """Returns the examples at these indices of `arrays`, NumPy or JAX arrays."""
        ...


class ArrayBacked(abc.ABC):
    """What an `InMemory` data set inherits to need only `arrays`, `num_examples` and `take`."""

    arrays: Any

    @property
    def example(self) -> Any:
        return shapes_of(self.gather(np.array(0)))

    @abc.abstractmethod
    def take(self, arrays: Any, indices: Any) -> Batch: ...

    def gather(self, indices: np.ndarray) -> Batch:
        """Returns the examples at these indices as NumPy arrays."""
        return self.take(self.arrays, indices)


@dataclass(frozen=True, eq=False)
class ArrayDataset(ArrayBacked):
    """Arrays whose first axis counts examples.

    Attributes:
      arrays: a pytree of arrays of equal length.
      facts: see `Dataset`.

    Raises:
      ValueError: if there is no array or their lengths differ.
    """

    arrays: Any
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = [(path, len(array)) for path, array in jax.tree.leaves_with_path(self.arrays)]
        if len({length for _, length in lengths}) != 1:
            keystr = partial(jax.tree_util.keystr, simple=True, separator=".")
            shown = ", ".join(f"{keystr(path)} {length:,}" for path, length in lengths)
            raise ValueError(f"arrays of unequal length ({shown}): give one entry for each example")

    @property
    def num_examples(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    @property
    def rows(self) -> Any:
        """`arrays` as devices hold them: each example that has several axes is one row.

        From a TPU's own layout of images no example can be gathered. It would first copy the whole
        array into another layout, and that takes as long as large updates.
        """
        return jax.tree.map(lambda x: x.reshape(len(x), -1) if x.ndim > 2 else x, self.arrays)

    def take(self, arrays: Any, indices: Any) -> Batch:
        """Returns the examples at these indices of `arrays`: `self.arrays` or `self.rows`.

        They may be NumPy arrays on the host or JAX arrays on a device.
        """

        def take_one(array: Any, own: np.ndarray) -> Any:
            return array[indices].reshape((*np.shape(indices), *own.shape[1:]))

        return jax.tree.map(take_one, arrays, self.arrays)


@dataclass(frozen=True, eq=False)
class SourceDataset:
    """Any source that gives one example, a pytree, at a time: a list, a Hugging Face data set."""

    source: RandomAccess
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_examples(self) -> int:
        return len(self.source)

    @property
    def example(self) -> Any:
        return shapes_of(self.gather(np.array(0)))

    def gather(self, indices: np.ndarray) -> Batch:
        flat = take(self.source, indices.ravel())
        return jax.tree.map(lambda leaf: leaf.reshape((*indices.shape, *leaf.shape[1:])), flat)


def shapes_of(tree: Any) -> Any:
    """Arrays as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def evaluation_batches(
    data: Dataset, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields every example once, in batches of one size. The last is padded and masked.

    Args:
      data: the test set.
      batch_size: examples of a batch on all processes together.
      process_index, process_count: each process gets an equal share of each batch.

    Yields:
      `{"examples": leaves (local examples, ...), "mask": float32 (local examples,)}`.
    """
    for index, mask in evaluation_places(
        data.num_examples, batch_size, process_index, process_count
    ):
        yield {"examples": data.gather(index), "mask": mask}


def evaluation_places(
    num_examples: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the examples of each evaluation batch: every one once over all processes.

    All processes yield the same number of batches, as collective evaluation needs. The places after
    the last example repeat it.

    Args:
      num_examples, batch_size, process_index, process_count: as in `evaluation_batches`.

    Yields:
      Their indices, int64 (local examples,), and the mask, float32, 0 where one is repeated.
    """
    share = batch_size // process_count
    for start in range(0, num_examples, batch_size):
        places = start + process_index * share + np.arange(share)
        mask = (places < num_examples).astype(np.float32)
        yield np.minimum(places, num_examples - 1), mask
