import os
import signal
import threading

import pytest

from batchgrow.run.signals import Preemption


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
