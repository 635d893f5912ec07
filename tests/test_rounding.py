"""`experiments.rounding`: on other devices an update is equal up to rounding."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_the_table_is_the_recorded_run():
    page = (ROOT / "docs/rounding.md").read_text()
    for row in json.loads((ROOT / "experiments/results/rounding.json").read_text())["rows"]:
        distances = [value for name, value in row.items() if name.startswith("after_")]
        cells = [f"{v:.2f}" if v >= 1e-3 else f"{v:.1e}" if v else "0" for v in distances]
        cells += [f"{100 * row['train_loss']:.1f} %", f"{100 * row['test_accuracy']:.2f} points"]
        assert f"| {row['run']} | {' | '.join(cells)} |" in page


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


@pytest.mark.slow
def test_a_divergence_ends_with_a_status_of_its_own():
    """It used to be a traceback."""
    command = [sys.executable, "-m", "experiments.rounding", "--config=configs/digits.py"]
    flags = ["--config.recipe.learning_rate=1e30", "--config.recipe.num_epochs=0.2"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the loss is nan")
