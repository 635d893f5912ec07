"""Compiles executables before they are needed, so that a growing batch causes no stall.

XLA compiles one executable for each batch size and releases Python's global lock meanwhile. The
next size is therefore compiled in a background thread while the current one trains.
"""

import contextlib
import itertools
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)


@dataclass
class CompileTimes:
    """The compilation time of one executable.

    Attributes:
      compile_seconds: the time of tracing, lowering and XLA's compilation (or reading its cache).
      waited_seconds: how long callers of `get` waited.
      cache_hit: whether XLA's result came from the persistent cache.
    """

    compile_seconds: float = 0.0
    waited_seconds: float = 0.0
    cache_hit: bool = False


class CompileAhead(Generic[Key]):
    """Builds executables in a background thread, each before it is needed.

    >>> import jax, numpy as np
    >>> double = jax.jit(lambda x: 2 * x)
    >>> build = lambda size: double.lower(np.zeros(size)).compile()
    >>> with CompileAhead(build, (2, 4)) as sizes:
    ...     print(sizes.get(2)(np.ones(2)))  # starts to compile 4
    ...     print(sizes.get(4)(np.ones(4)))
    [2. 2.]
    [2. 2. 2. 2.]

    Args:
      build: takes a key (for example a batch size) and returns the executable. It runs in the
        background. `get` raises the exceptions that it raises.
      order: the keys in the order in which they will be needed; `get` starts the one after its own.
        A key that comes again counts where it comes first. Without an order, call `start` to say
        what to compile, and when.
      pool: the thread that compiles, if several objects share one.

    Attributes:
      times: the compilation times of each key started so far.
      pool: the thread that compiles.
    """

    def __init__(
        self,
        build: Callable[[Key], Any],
        order: Sequence[Key] = (),
        pool: ThreadPoolExecutor | None = None,
    ):
        self._build = build
        self._following = dict(itertools.pairwise(dict.fromkeys(order)))
        self.pool = pool or ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._owns_pool = pool is None
        self._futures: dict[Key, Future] = {}
        self.times: dict[Key, CompileTimes] = {}

    def __enter__(self) -> "CompileAhead[Key]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, key: Key) -> Future:
        """Starts to compile `key` in the background, unless that was done before.

        Returns a future of the executable.
        """
        if key not in self._futures:
            times = self.times[key] = CompileTimes()
            self._futures[key] = self.pool.submit(self._compile, key, times)
        return self._futures[key]

    def get(self, key: Key) -> Any:
        """Returns the executable for `key` when it is ready, and starts the next key of `order`."""
        started = time.perf_counter()
        executable = self.start(key).result()
        self.times[key].waited_seconds += time.perf_counter() - started
        if key in self._following:
            self.start(self._following[key])
        return executable

    def keys(self) -> set[Key]:
        """Returns the keys that were started and not released."""
        return set(self._futures)

    def finished(self, key: Key) -> Any | None:
        """Returns the executable for `key` if it is ready, else None."""
        future = self._futures.get(key)
        if future is None or not future.done() or future.exception() is not None:
            return None
        return future.result()

    def release(self, key: Key) -> None:
        """Drops the executable for `key`, and with it its device memory."""
        self._futures.pop(key, None)

    def close(self) -> None:
        """Drops every executable. A compilation in progress ends before Python exits.

        A pool that was given stays open.
        """
        for future in self._futures.values():
            future.cancel()
        if self._owns_pool:
            self.pool.shutdown(wait=False)
        self._futures.clear()

    def _compile(self, key: Key, times: CompileTimes) -> Any:
        started = time.perf_counter()
        try:
            with cache_hits() as hits:
                return self._build(key)
        finally:
            times.compile_seconds = time.perf_counter() - started
            times.cache_hit = bool(hits)


_hits = threading.local()
_listening = threading.Lock()


@contextlib.contextmanager
def cache_hits() -> Iterator[list[str]]:
    """Collects the persistent-cache hits of this thread's compilations."""
    if _listening.acquire(blocking=False):  # once in a process
        jax.monitoring.register_event_listener(_record_cache_hit)
    _hits.events = []
    try:
        yield _hits.events
    finally:
        _hits.events = None


def _record_cache_hit(event: str, **_: Any) -> None:
    events = getattr(_hits, "events", None)
    if events is not None and event == "/jax/compilation_cache/cache_hits":
        events.append(event)


_chosen = ""  # the folder of the last call of `enable_compilation_cache`


def enable_compilation_cache(directory: str) -> str:
    """Turns on JAX's persistent cache.

    The folder is JAX's own setting, else `directory`, else ~/.cache/batchgrow/xla. What an earlier
    call chose is not JAX's own setting.

    Several processes with GPUs have no cache. They share the search for the fastest kernels, and
    only process 0 writes. If it read an executable, the others would wait for its share of the
    search for ever. Call it after `jax.distributed.initialize`.

    Returns the folder in use, or "" if nothing is cached, as where the folder cannot be made.
    """
    global _chosen
    is_shared = jax.distributed.is_initialized() and jax.process_count() > 1
    if is_shared and jax.default_backend() == "gpu":
        _set_cache("jax_enable_compilation_cache", False)
        return ""
    configured = jax.config.values["jax_compilation_cache_dir"]
    if configured and configured != _chosen:
        return configured
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = directory or str(home / "batchgrow" / "xla")
    if "://" not in folder:
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("no compilation cache: %s", error)
            folder = ""
    _set_cache("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _chosen = folder
    return folder


def _set_cache(name: str, value: Any) -> None:
    """Changes a setting of JAX's cache, also where JAX has used the cache before."""
    jax.config.update(name, value)
    compilation_cache.reset_cache()
