import os
import signal

import pytest
import tiny

from batchgrow.config import make_experiment
from experiments.watched import train_watched


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_measurement_and_not_only_its_training(number, tmp_path):
    """A part of a measurement used to be reported as the whole."""
    seen = []

    def watch(point, state):
        seen.append(point.update)
        os.kill(os.getpid(), number)
        return False

    with pytest.raises(SystemExit) as leaving:
        train_watched(experiment(), str(tmp_path), watch)
    assert leaving.value.code == 75 and len(seen) == 1


@pytest.mark.parametrize("most", [3, 1000])
def test_enough_and_the_end_of_the_plan_are_no_signals(most, tmp_path):
    seen = []

    def watch(point, state):
        seen.append(point.update)
        return len(seen) == most

    train_watched(experiment(), str(tmp_path), watch)
    assert len(seen) == min(most, experiment().plan.num_updates)


def experiment():
    return make_experiment(tiny.make_config({"run.updates_per_dispatch": 1}))
