"""How far runs end apart: the same devices, other devices, and a slightly smaller learning rate.

    python -m experiments.rounding --config=configs/digits.py [--json]

Another number of devices sums in another order, so each update is the same up to rounding only.
Training amplifies what differs, wherever it comes from. Each line compares a run with the one on a
single device: the relative distance of the parameters after some updates, |a - b| / |a|, and at the
end the relative difference of the training loss and the difference of the first test metric.
"""

import json
import os
import tempfile
from typing import Any

import jax
import numpy as np
from absl import flags

from batchgrow.config import ConfigDict
from batchgrow.run import environment
from batchgrow.text_table import text_table
from experiments import cli
from experiments.launch import experiment_of, launch
from experiments.watched import train_watched

_CONFIG = cli.config_flag()
_JSON = flags.DEFINE_bool("json", False, "One line of JSON instead of the table.")
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 8, "Of the run on several.", lower_bound=2)

LESS = 1 - 1 / 200_000  # times the learning rate


def main(_: list[str]) -> int:
    """Trains the runs and prints how far they are apart."""
    jax.config.update("jax_num_cpu_devices", _NUM_DEVICES.value)
    several = min(_NUM_DEVICES.value, jax.device_count())
    if several < 2:
        raise ValueError(f"--num_devices {_NUM_DEVICES.value}: there is only one device")
    config = _CONFIG.value
    if config.recipe.learning_rate is None:
        raise ValueError("recipe.learning_rate is not set; add --config.recipe.learning_rate=...")
    first = trained(config)
    others = {
        "1 device again": trained(config),
        f"{several} devices": trained(config, num_devices=several),
        "1 device, learning rate less 1/200,000": trained(config, factor=LESS),
    }
    rows = [{"run": name} | apart(first, other) for name, other in others.items()]
    about = {
        "config": f"{config.name}:{config.variant}, {config.recipe.num_epochs:g} epochs",
        "learning_rates": [config.recipe.learning_rate * factor for factor in (1, LESS)],
        "seed": config.seed,
        **environment.recorded(),
    }
    found = {"experiment": "rounding", "rows": rows, **about}
    print(json.dumps(found) if _JSON.value else as_text(rows))
    return 0


def trained(config: ConfigDict, num_devices: int = 1, factor: float = 1.0) -> dict[str, Any]:
    """Trains a config in a temporary folder.

    Args:
      config: the config, which is not changed.
      num_devices: the number of devices.
      factor: of the learning rate.

    Returns:
      `parameters`, one float64 vector after 1, 10, 100, ... updates and at the end; and the
      training loss and the first test metric of the last row.
    """
    config = config.copy_and_resolve_references()
    config.recipe.learning_rate *= factor
    config.run.num_devices = num_devices
    config.run.cpu_kernels = "xla"  # the same for any number of devices
    config.run.updates_per_dispatch = 1  # the parameters are looked at in between
    config.run.progress = config.run.tensorboard = False
    config.noise.share = None
    parameters: dict[int, np.ndarray] = {}

    def watch(point: Any, state: Any) -> bool:
        update = point.update + 1
        if update == 10 ** (len(str(update)) - 1) or point.end_examples >= end:
            leaves = jax.tree.leaves(jax.device_get(state.params))
            parameters[update] = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(float)
        return False

    experiment = experiment_of(config)
    end = experiment.plan.end_examples
    with tempfile.TemporaryDirectory() as folder:
        train_watched(experiment, folder, watch)
        with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
            last = json.loads(file.readlines()[-1])
    metric = f"test_{experiment.task.metrics[0].name}"
    return {"parameters": parameters, "train_loss": last["train_loss"], metric: last[metric]}


def apart(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The distances of two results of `trained`."""
    a, b = first["parameters"], other["parameters"]
    distances = {n: np.linalg.norm(a[n] - b[n]) / np.linalg.norm(a[n]) for n in a}
    (metric,) = first.keys() - {"parameters", "train_loss"}
    return {
        **{f"after_{n}": float(distance) for n, distance in distances.items()},
        "train_loss": abs(first["train_loss"] - other["train_loss"]) / first["train_loss"],
        metric: abs(first[metric] - other[metric]),
    }


def as_text(rows: list[dict[str, Any]]) -> str:
    """A table for the terminal."""
    cells = [["" if name == "run" else name for name in rows[0]]]
    cells += [[v if isinstance(v, str) else f"{v:.2g}" for v in row.values()] for row in rows]
    return text_table(cells)


if __name__ == "__main__":
    launch(main)
