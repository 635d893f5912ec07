import os
import signal
import threading
import time

import pytest

from batchgrow.run import signals
from batchgrow.run.signals import Preemption, stopping_at_once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop_inside_and_outside(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Preemption() as outer:
        with Preemption() as inner:
            assert not inner.requested()
            os.kill(os.getpid(), number)
            assert inner.requested()
        assert outer.requested()
    assert signal.getsignal(number) is before


def test_another_thread_neither_fails_nor_touches_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    asked = []

    def train() -> None:
        with Preemption() as preemption:
            asked.append(preemption.requested())
            asked.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert asked == [False, before]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("waits", [True, False])
def test_a_library_that_swallows_the_exit_does_not_keep_the_process(
    waits: bool, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorflow_datasets waited for ever, where `promise` had swallowed the first exception."""
    monkeypatch.setattr(signals, "INSIST_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as leaving, stopping_at_once(75):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except SystemExit:
            if waits:
                assert not threading.Event().wait(60)
    assert leaving.value.code == 75
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_without_a_signal_nothing_is_raised_or_left_behind() -> None:
    before, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    with stopping_at_once(75):
        (started,) = set(threading.enumerate()) - threads
        assert signal.getsignal(signal.SIGTERM) != before
    started.join(timeout=60)
    assert not started.is_alive()
    assert signal.getsignal(signal.SIGTERM) == before
