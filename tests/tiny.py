"""What the tests train: a network and runs of 8x8 digits small enough to compile in a moment."""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from batchgrow import models
from batchgrow import train as train_module
from batchgrow.loop import Outcome
from batchgrow.models import GhostBatchNorm
from batchgrow.run.log import TIMING, Row
from configs import digits


class TinyNet(nn.Module):
    """One hidden layer with ghost batch norm; fields as every model's."""

    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(12, use_bias=False)(images.reshape(images.shape[0], -1))
        x = GhostBatchNorm(self.ghost_batch_size, not train, self.axis_name)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


def make_config(changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Digits for half an epoch: 11 updates of 32 examples, then 3 of 128, ghosts of 16.

    Rows stand at 160, 288, 480, 608 and 736 examples; the last is evaluated, and one before.

    Args:
      changes: fields by their dotted names.
    """
    config = digits.get_config("increasing_batch")
    config.model = ConfigDict({"name": "tiny", "num_classes": 10, "dtype": "float32"})
    config.recipe.num_epochs = 0.5
    config.recipe.global_batch_size = 32
    config.recipe.boundaries_epochs = (0.25,)
    config.recipe.factor = 0.25
    config.plan.max_batch_size = 128
    config.log_every_epochs = 0.1
    config.evaluate_every_epochs = 0.3
    config.run.num_devices = 1
    config.run.eval_batch_size = 100
    config.run.tensorboard = False
    config.run.progress = False
    for name, value in (changes or {}).items():
        *folder, field = name.split(".")
        target = config
        for key in folder:
            target = target[key]
        with target.ignore_type():
            target[field] = value
    return config


models.MODELS["tiny"] = TinyNet


class MemoryCheckpoints:
    """Keeps the states that a run saves, as host arrays, and writes nothing."""

    def __init__(self, *_: object, **__: object):
        self.states: dict[int, Any] = {}

    def __enter__(self) -> "MemoryCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def restore(self, like: Any) -> None:
        return None

    def wait(self) -> None:
        pass

    def save(self, examples_seen: int, state: Any, *_: object) -> None:
        self.states[examples_seen] = jax.device_get(state)


@dataclass(frozen=True)
class Trained:
    """What came out: states by examples seen, and rows without their timing."""

    outcome: Outcome
    states: dict[int, Any]
    rows: list[Row]


def run_in_memory(
    workdir: pathlib.Path, changes: Mapping[str, Any] | None = None, **options: Any
) -> Trained:
    """`train` with `make_config(changes)`, the checkpoints kept in memory."""
    checkpoints = MemoryCheckpoints()
    with (
        mock.patch.object(train_module, "Checkpoints", lambda *_, **__: checkpoints),
    ):
        outcome = train_module.train(make_config(changes), str(workdir), **options)
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(workdir)]
    return Trained(outcome, checkpoints.states, rows)


def read_rows(workdir: pathlib.Path) -> list[Row]:
    """The rows of `metrics.jsonl`."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
