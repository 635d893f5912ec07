"""A config, and data, of one's own, for tests."""

import csv
import json
import pathlib
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from batchgrow.config import make_experiment
from batchgrow.experiment import Experiment, Outcome
from batchgrow.train import train
from configs import base


def make_config(name: str, changes: dict[str, Any] | None = None, task: str = "") -> ConfigDict:
    """Two epochs of a small perceptron: batches of 4, then of 8."""
    config = base.get_config()
    config.name = "own"
    config.data.name = name
    config.model = ConfigDict({"name": "mlp", "features": (8,)})
    config.recipe.num_epochs = 2.0
    config.recipe.batch_size = 4
    config.recipe.learning_rate = 0.02
    config.recipe.boundaries_epochs = (1.0,)
    config.recipe.factor = 0.5
    config.plan.name = "grow"
    config.plan.exponent = 1.0
    config.plan.max_batch_size = 8
    config.run.num_devices = 1
    config.run.tensorboard = config.run.progress = False
    if task:
        config.task = ConfigDict({"name": task})
    for field, value in (changes or {}).items():
        section, _, name = field.rpartition(".")
        target = config[section] if section else config
        with target.unlocked(), target.ignore_type():
            target[name] = value
    return config


def train_twice(config: ConfigDict, folder: pathlib.Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and the last row after its training; a second start finds it finished."""
    experiment = make_experiment(config)
    assert train(experiment, str(folder)) is Outcome.FINISHED
    assert train(make_experiment(config), str(folder)) is Outcome.FINISHED
    return experiment, json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def write_images(root: pathlib.Path, side: int = 6, each: int = 10) -> pathlib.Path:
    """Two classes: bright cats and dark dogs."""
    for name, level in (("cat", 200), ("dog", 50)):
        (root / name).mkdir(parents=True)
        for index in range(each):
            image = np.full((side, side + 2, 3), level + index, np.uint8)
            cv2.imwrite(str(root / name / f"{index}.png"), image)
    return root


def write_csv(path: pathlib.Path, rows: int = 30, **cells: str) -> pathlib.Path:
    """y is 3 a - b; `cells` replace those of the fourth line."""
    a, b = np.random.default_rng(0).normal(size=(2, rows)) * 10 + 5
    table = [dict(a=str(x), b=str(z), y=str(3 * x - z)) for x, z in zip(a, b, strict=True)]
    table[2] |= cells
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["a", "b", "y"])
        writer.writeheader()
        writer.writerows(table)
    return path


ARRAYS = {
    "image": np.random.default_rng(0).integers(0, 255, (24, 5, 5, 1), dtype=np.uint8),
    "label": np.arange(24) % 3,
}
