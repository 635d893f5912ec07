"""The permutations of a stream, one for each epoch, computed before they are needed."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np

PREPARED_AHEAD = 1_000_000  # examples; smaller permutations take a few milliseconds


class Permutations:
    """A permutation of all examples for each epoch. At most two are kept.

    The permutation of the next epoch is computed in a background thread, so that training
    on a large data set does not pause at the end of an epoch.

    Args:
      num_examples: N.
      seed: determines all permutations.
    """

    def __init__(self, num_examples: int, seed: int):
        self._num_examples, self._seed = num_examples, seed
        self._known: dict[int, np.ndarray | Future[np.ndarray]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch: int32 `(N,)`, int64 for more than 2^31 examples."""
        found = self._known.get(epoch)
        order = found.result() if isinstance(found, Future) else found
        if order is None:
            order = self._compute(epoch)
        following = self._known.get(epoch + 1)
        if following is None and self._num_examples >= PREPARED_AHEAD:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="permutation")
            following = self._pool.submit(self._compute, epoch + 1)
        self._known = {epoch: order} | ({} if following is None else {epoch + 1: following})
        return order

    def _compute(self, epoch: int) -> np.ndarray:
        sequence = np.random.SeedSequence([self._seed, epoch])
        dtype = np.int32 if self._num_examples <= 2**31 else np.int64
        order = np.arange(self._num_examples, dtype=dtype)
        np.random.Generator(np.random.Philox(sequence)).shuffle(order)
        return order


@lru_cache(maxsize=4)
def permutations(num_examples: int, seed: int) -> Permutations:
    """The permutations of a stream; streams of equal size and seed share them."""
    return Permutations(num_examples, seed)


if hasattr(os, "register_at_fork"):  # A forked process, such as a DataLoader's, has no threads.
    os.register_at_fork(after_in_child=permutations.cache_clear)
