"""What the tests train: a network and runs of 8x8 digits small enough to compile in a moment."""

from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from ml_collections import ConfigDict

from batchgrow import models, train
from batchgrow.models import GhostBatchNorm
from configs import digits


class TinyNet(nn.Module):
    """One hidden layer with ghost batch norm."""

    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = np.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(12)(images.reshape(images.shape[0], -1))
        x = GhostBatchNorm(self.ghost_batch_size, not train, self.axis_name)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


def make_config(**changes: Any) -> ConfigDict:
    """`increasing_batch` of digits for half an epoch: 11 updates of 32 examples, then 3 of 128.

    `changes` are fields by their dotted names, with "__" for the dot.
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
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


class MemoryCheckpoints:
    """Keeps the states that a run saves, as host arrays, instead of writing them."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}

    def __call__(self, *_: object, **__: object) -> "MemoryCheckpoints":
        return self

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
