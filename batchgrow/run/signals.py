"""Signals: a run that is asked to stop ends after the same update on every process."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 130  # The exit status of a second Ctrl-C, as in shells.
INSIST_SECONDS = 5.0

# JAX's preemption service counts on through all runs of a process, so this counter does too. Nobody
# else may use the service: Orbax would, hence `checkpoints.Manager`.
_sync_points = itertools.count(1)


class Preemption:
    """While the context lasts, SIGTERM and SIGINT ask for a stop; a second SIGINT exits at once.

    They nest: a command of several runs has one around all of them, and a signal that an inner one
    receives, perhaps too late for its run, is passed on to the outer one.

    With several processes JAX's own preemption service receives SIGTERM and tells all of them after
    which update to stop (`multihost_utils.reached_preemption_sync_point`).

    Python handles signals in the main thread only. In another thread the context changes nothing,
    and with one process no stop is ever requested.
    """

    def __init__(self) -> None:
        self._asked = False
        self._outer: Preemption | None = None
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self
        before = self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        outer = getattr(before, "__self__", None)
        self._outer = outer if isinstance(outer, Preemption) else None
        if jax.process_count() == 1:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer._asked |= self._asked

    def requested(self) -> bool:
        """Returns whether to stop now. Every process asks once after each dispatch."""
        if jax.process_count() == 1:
            return self._asked
        # The service names one of these numbers, so none may be left out.
        return multihost_utils.reached_preemption_sync_point(next(_sync_points))

    def _ask(self, number: int, _: FrameType | None) -> None:
        self._asked = True
        _say(f"{signal.Signals(number).name}: stopping after this update")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            _say("second interrupt: exiting at once")
            os._exit(INTERRUPTED)
        self._interrupted = True
        self._ask(number, frame)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stopping_at_once(status: int) -> Iterator[None]:
    """While the context lasts, SIGTERM or SIGINT raises SystemExit; a second SIGINT exits at once.

    For what comes before training: there is no update to finish and no state to save. Beside other
    processes, or in another thread than the main one, the context changes nothing.

    A library may swallow the exception: `promise`, with which tensorflow_datasets waits for its
    downloads, does so now and then. So it is raised again every `INSIST_SECONDS`, and at the end of
    the context.

    Args:
      status: the exit status.

    Raises:
      SystemExit: with this status, in the context or at its end, after a signal.
    """
    if jax.distributed.is_initialized() or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    asked, left = threading.Event(), threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        if not asked.is_set():
            asked.set()
            _say(f"{signal.Signals(number).name}: stopping; training has not begun")
        raise SystemExit(status)

    def insist() -> None:
        asked.wait()
        while not left.wait(INSIST_SECONDS):
            os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # Started here, because a handler may interrupt what holds the locks of `threading`.
    threading.Thread(target=insist, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked.is_set():
            raise SystemExit(status)
        asked.set()  # lets the thread end


def _say(text: str) -> None:
    """Prints from a signal handler, which may have interrupted a print."""
    os.write(2, f"{text}\n".encode())
