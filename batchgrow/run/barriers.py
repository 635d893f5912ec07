"""The barriers at which processes meet while a checkpoint is written."""

import itertools

import jax
from jax._src import distributed  # JAX has no public access to its key-value store

_groups = itertools.count(1)  # Every process makes the same ones in the same order.


class BrokenBarrier(Exception):
    """A write has failed: the processes went to different barriers."""


class Barriers:
    """Barriers that are joined by number and compared by name.

    Orbax has several of them in each write. A process whose write has failed leaves out some, and
    goes to the last one: with barriers joined by name it waits there for the others, and they wait
    for it elsewhere, all for minutes. Here they meet, see that their names differ, and raise. All
    later barriers raise at once.

    An instance is the `barrier_sync_fn` of one `ocp.AsyncOptions`. Orbax calls it from several
    threads, but from one after the other.
    """

    def __init__(self) -> None:
        self._place = f"batchgrow/barriers/{next(_groups)}"
        self._count = 0
        self._broken = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Returns when every process is here. With one process it does nothing.

        Args:
          key: the name of the barrier.
          timeout_ms: how long to wait for the others.

        Raises:
          BrokenBarrier: if another process came with another name, now or earlier.
          jax.errors.JaxRuntimeError: if another process did not come.
        """
        if jax.process_count() == 1:
            return
        if self._broken:
            raise BrokenBarrier("another process could not write; see its message")
        self._broken = True  # unless all goes well
        client = distributed.global_state.client
        assert client is not None
        before, here = (f"{self._place}/{n}/" for n in (self._count - 1, self._count))
        client.key_value_set(here + key, "", allow_overwrite=True)
        client.wait_at_barrier(self._place, timeout_ms)
        if len(client.key_value_dir_get(here)) > 1:
            raise BrokenBarrier("another process could not write; see its message")
        if jax.process_index() == 0:
            client.key_value_delete(before)  # Everybody is past it.
        self._count += 1
        self._broken = False
