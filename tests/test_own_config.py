"""One's own config file, and the commands that take it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from own import write_csv

from batchgrow import Recipe, curves, decay, grow
from batchgrow.config.fields import FIELDS
from configs import base

ROOT = pathlib.Path(__file__).parents[1]
HERE = "test_own_config"


CONFIG = """
import neighbour
from configs import base


def get_config(variant="grow"):
    config = base.get_config()
    config.name = "outside"
    config.variant = variant
    config.data.name = "neighbour:data"
    config.data.num_train_examples = 9  # There are 8.
    config.model.name = "neighbour:Net"
    config.recipe.num_epochs = neighbour.EPOCHS
    config.recipe.batch_size = 4
    config.recipe.learning_rate = 0.1
    config.plan.name = variant
    config.run.tensorboard = config.run.progress = False
    config.run.num_devices = 1
    return config
"""
NEIGHBOUR = """
import flax.linen as nn
import numpy as np

EPOCHS = 1.0


def data(split):
    return {"x": np.zeros((8, 3), np.float32), "y": np.arange(8) % 2}


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(x)
"""


ANY_NUMBER = "--config.data.num_train_examples=None"


def command(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def outside(tmp_path) -> pathlib.Path:
    """A config outside of the repository that imports the file beside it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.py").write_text(CONFIG)
    (tmp_path / "mine/neighbour.py").write_text(NEIGHBOUR)
    return tmp_path / "mine/own.py"


@pytest.mark.slow
def test_commands_take_a_config_outside_of_the_repository(outside, tmp_path):
    command(
        "train",
        f"--config={outside}:decay",
        f"--workdir={tmp_path}/run",
        "--config.seed=3",
        ANY_NUMBER,
    )
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["seed"], config["model"]["num_classes"]) == (3, 2)


@pytest.mark.slow
def test_the_config_of_the_docs_trains(tmp_path):
    table = write_csv(tmp_path / "houses.csv", rows=200)
    table.write_text(table.read_text().replace("a,b,y", "rooms,age,price"))
    config = f"--config=docs/examples/own_config.py:{table}"
    command("train", config, f"--workdir={tmp_path}/run", "--config.recipe.num_epochs=10")
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_r2"] > 0.9
    assert "own_config:heavy_ball" in command("fields", config)


@pytest.mark.slow
def test_the_task_of_the_docs_learns():
    done = subprocess.run(
        [sys.executable, ROOT / "docs/examples/own_task.py"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert -0.35 <= float(done.stdout.split()[-1]) <= -0.2


@pytest.mark.slow
def test_sweep_takes_fields_as_other_commands_do(outside, tmp_path):
    command(
        *("sweep", f"--config={outside}:grow", "--variants=decay,grow", "--seeds=1"),
        *("--config.recipe.learning_rate=0.5", ANY_NUMBER, f"--workdir={tmp_path}/sweep"),
    )
    configs = sorted((tmp_path / "sweep").rglob("config.json"))
    found = [json.loads(path.read_text()) for path in configs]
    assert [(c["variant"], c["recipe"]["learning_rate"]) for c in found] == [
        ("decay", 0.5),
        ("grow", 0.5),
    ]


def test_fields_lists_every_field_with_its_meaning():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.fields", "--config=configs/shakespeare.py"],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = dict(line.removeprefix("--config.").split("=", 1) for line in done.stdout.splitlines())
    own = ("task.", "model.")  # a task or model of another kind has other fields
    declared = [field for field in FIELDS if not field.name.startswith(own)]
    assert [name for name in lines if not name.startswith(own)] == [f.name for f in declared]
    assert all(field.meaning and field.meaning in lines[field.name] for field in declared)
    assert "transformer" in lines["model.name"]


def test_fields_of_a_model_have_the_meaning_that_its_docstring_gives():
    from experiments import fields

    config = base.get_config()
    with config.unlocked():
        config.model.name = "mlp"
    assert fields.comments_of_classes(config)["model.features"] == "units of each hidden layer."


def test_grow_says_so_where_nothing_falls():
    plan = grow(Recipe(10, 0.9, curves.constant(0.1), num_examples=1000, num_epochs=2))
    assert len(plan.segments) == 1
    assert plan.warnings[0].startswith("the learning rate never falls, so the batch does not grow")
    assert decay(plan.recipe).warnings == ()
