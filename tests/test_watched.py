import os
import signal

import pytest

from experiments import timing
from experiments.watched import train_watched


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_measurement_and_not_only_its_training(number, tmp_path):
    """A cut measurement used to be reported as a whole one."""
    experiment = tiny()
    seen = []

    def watch(point, state):
        seen.append(point.update)
        os.kill(os.getpid(), number)
        return False

    with pytest.raises(SystemExit) as leaving:
        train_watched(experiment, str(tmp_path), watch)
    assert leaving.value.code == 75 and len(seen) == 1


def test_enough_is_enough(tmp_path):
    train_watched(tiny(), str(tmp_path), lambda point, state: True)


def tiny():
    flags = timing.flags.FLAGS
    if not flags.is_parsed():
        flags.mark_as_parsed()
    return timing.make_experiment([(8, 1000)], ghost_batch_size=8, tiny=True)
