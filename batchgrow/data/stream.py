"""The training stream: which example comes at each position, on any hardware.

Position p belongs to epoch p // N. Each epoch is a permutation of all N examples drawn from
(seed, epoch), and batches continue across epoch boundaries, so no example is ever dropped. A stream
has no state: a run that stops at `examples_seen` continues from there.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from batchgrow.data.permutations import permutations


class RandomAccess(Protocol):
    """Gives examples by number: a list, an array, a Grain source, a Hugging Face data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Stream:
    """Indices into a data set of `num_examples` by stream position.

    Args:
      num_examples: size N of the data set.
      seed: determines the permutations; at least 0 and below 2**32.

    Raises:
      ValueError: without examples, or for another seed. From 2**32 on, one seed's epochs would be
        another's.
    """

    def __init__(self, num_examples: int, seed: int):
        if num_examples < 1:
            raise ValueError(f"num_examples={num_examples} must be at least 1")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must be at least 0 and below 2**32")
        self.num_examples = num_examples
        self.seed = seed

    def indices(self, positions: np.ndarray | Sequence[int]) -> np.ndarray:
        """Returns the index of the example at each stream position: int64 of the same shape.

        >>> stream = Stream(num_examples=5, seed=0)
        >>> sorted(stream.indices(np.arange(5, 10)).tolist())  # one epoch, each example once
        [0, 1, 2, 3, 4]
        """
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, self.num_examples)
        indices = np.empty_like(positions)
        for epoch in range(epochs.min(), epochs.max() + 1) if epochs.size else ():
            here = epochs == epoch
            order = permutations(self.num_examples, self.seed)(int(epoch))
            indices[here] = order[places[here]]
        return indices


def take(source: RandomAccess, indices: Iterable[int]) -> Any:
    """The examples at these indices, stacked leaf by leaf: arrays `(number of indices, ...)`.

    >>> source = [{"text": np.arange(3) + i, "label": i} for i in range(10)]
    >>> batch = take(source, [7, 2])
    >>> batch["text"].tolist(), batch["label"].tolist()
    ([[7, 8, 9], [2, 3, 4]], [7, 2])

    Needs JAX, unlike the rest of this file.

    Args:
      source: its examples must be pytrees of equal structure and shapes.
      indices: at least one index.
    """
    import jax  # Not above, so that streams need NumPy only.

    examples = [source[int(index)] for index in indices]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
