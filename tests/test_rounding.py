"""`experiments.rounding`: on other devices an update is equal up to rounding."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_an_update_is_equal_up_to_rounding_and_the_same_devices_give_the_same_bits():
    command = [sys.executable, "-m", "experiments.rounding", "--config=configs/digits.py", "--json"]
    flags = ["--num_devices=2", "--config.recipe.num_epochs=0.2"]
    done = subprocess.run([*command, *flags], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    again, devices, rate = found["rows"]
    assert set(again.values()) == {"1 device again", 0.0}
    assert devices["run"] == "2 devices" and 0 < devices["after_1"] < 1e-6
    assert 0 < rate["after_1"] < 1e-5
    assert list(devices) == [
        "run",
        "after_1",
        "after_10",
        "after_18",
        "train_loss",
        "test_accuracy",
    ]
    assert found["learning_rates"] == [0.2, pytest.approx(0.199999)]
