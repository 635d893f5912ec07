"""Signals: a run that is asked to stop finishes its update first, on every process the same one."""

import os
import signal
import sys
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 130  # exit status of a second Ctrl-C, as shells have it


class Preemption:
    """While the context lasts, SIGTERM and SIGINT ask for a stop; a second SIGINT exits at once.

    With several processes JAX's own preemption service takes SIGTERM, and tells all of them the
    update after which to stop (`multihost_utils.reached_preemption_sync_point`).
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        if jax.process_count() == 1:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, num_updates: int) -> bool:
        """Whether to stop after `num_updates`; every process asks after each dispatch."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(num_updates)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self._asked = True
        name = signal.Signals(number).name
        print(f"{name}: stopping after this update", file=sys.stderr, flush=True)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            print("second interrupt: exiting at once", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        self._ask(number, frame)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
