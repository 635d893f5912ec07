"""Executables compiled before they are needed: a batch grows without a stall.

XLA compiles one executable per batch size and releases Python's lock meanwhile, so the next size
is compiled in a background thread while the current one trains.
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
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)


@dataclass
class CompileTimes:
    """What one executable cost.

    Attributes:
      lower_seconds: tracing to StableHLO.
      compile_seconds: XLA, or reading its cache.
      waited_seconds: how long the caller of `get` stood still.
      cache_hit: whether XLA's result came from the persistent cache.
    """

    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    waited_seconds: float = 0.0
    cache_hit: bool = False


@dataclass
class _Entry:
    executable: Future
    times: CompileTimes = field(default_factory=CompileTimes)


class CompileAhead(Generic[Key]):
    """Compiles `lower(key)` in a background thread; `get(key)` waits only if it is not done.

    >>> import jax, numpy as np
    >>> double = jax.jit(lambda x: 2 * x)
    >>> with CompileAhead(lambda size: double.lower(np.zeros(size)), (2, 4)) as sizes:
    ...     print(sizes.get(2)(np.ones(2)))  # 4 begins to compile
    ...     print(sizes.get(4)(np.ones(4)))
    [2. 2.]
    [2. 2. 2. 2.]

    An exception raised while lowering or compiling is raised by `get`.

    Args:
      lower: from a key (say, a batch size) to a `jax.stages.Lowered`, or to anything else whose
        `compile()` gives what `get` shall return.
      order: the keys in the order in which they will be wanted; `get` begins the one after its own.
        Without it, `start` says what to compile, and when.

    Attributes:
      times: what each key begun so far has cost.
    """

    def __init__(self, lower: Callable[[Key], Any], order: Sequence[Key] = ()):
        self._lower = lower
        self._following = dict(itertools.pairwise(order))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._entries: dict[Key, _Entry] = {}
        self.times: dict[Key, CompileTimes] = {}

    def __enter__(self) -> "CompileAhead[Key]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, key: Key) -> None:
        """Begins to compile `key` in the background, unless that was done before."""
        if key not in self._entries:
            times = self.times[key] = CompileTimes()
            self._entries[key] = _Entry(self._pool.submit(self._compile, key, times), times)

    def ready(self, key: Key) -> bool:
        """Whether `get(key)` would return at once."""
        return key in self._entries and self._entries[key].executable.done()

    def get(self, key: Key) -> Any:
        """The executable for `key`; waits for it, then begins what follows in `order`."""
        self.start(key)
        entry = self._entries[key]
        started = time.perf_counter()
        executable = entry.executable.result()
        entry.times.waited_seconds += time.perf_counter() - started
        if key in self._following:
            self.start(self._following[key])
        return executable

    def release(self, key: Key) -> None:
        """Drops the executable of a size that is not needed any more, with its device memory."""
        self._entries.pop(key, None)

    def close(self) -> None:
        """Drops every executable; a compilation under way is awaited by Python's exit, not here."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._entries.clear()

    def _compile(self, key: Key, times: CompileTimes) -> Any:
        started = time.perf_counter()
        with cache_hits() as hits:
            lowered = self._lower(key)
            times.lower_seconds = time.perf_counter() - started
            started = time.perf_counter()
            executable = lowered.compile()
        times.compile_seconds = time.perf_counter() - started
        times.cache_hit = bool(hits)
        return executable


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


def enable_compilation_cache(directory: str) -> str:
    """Turns on JAX's persistent cache: at JAX's own setting, else `directory`, else ~/.cache.

    Returns the folder in use, or "" if it cannot be written (then nothing is cached).
    """
    configured = jax.config.values["jax_compilation_cache_dir"]
    if not configured:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        configured = directory or str(home / "batchgrow" / "xla")
        if "://" not in configured:
            try:
                pathlib.Path(configured).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                log.warning("no compilation cache: %s", error)
                return ""
        jax.config.update("jax_compilation_cache_dir", configured)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return configured
