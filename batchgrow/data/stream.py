"""The training stream: which example stands at each position, for ever and on any hardware.

Position p belongs to epoch p // N. Each epoch is a permutation of all N examples drawn from
(seed, epoch), and batches run on across epoch boundaries, so no example is ever dropped. A stream
has no state: a run that stops at `examples_seen` goes on from there.
"""

from functools import lru_cache

import numpy as np


class Stream:
    """Indices into a data set of `num_examples` by stream position.

    Args:
      num_examples: size N of the data set.
      seed: of the permutations.
    """

    def __init__(self, num_examples: int, seed: int):
        self.num_examples = num_examples
        self.seed = seed

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The example at each stream position: int64 of the same shape.

        >>> stream = Stream(num_examples=5, seed=0)
        >>> sorted(stream.indices(np.arange(5, 10)).tolist())  # one epoch, each example once
        [0, 1, 2, 3, 4]
        """
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, self.num_examples)
        indices = np.empty_like(positions)
        for epoch in range(epochs.min(), epochs.max() + 1) if epochs.size else ():
            here = epochs == epoch
            order = _permutation(self.num_examples, self.seed, epoch)
            indices[here] = order[places[here]]
        return indices


@lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_examples)
