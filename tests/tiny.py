"""What the tests train: a network and runs of 8x8 digits small enough to compile in a moment."""

import dataclasses
import json
import pathlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from batchgrow.config import make_experiment
from batchgrow.data.datasets import Dataset
from batchgrow.experiment import Experiment, Outcome
from batchgrow.models import GhostBatchNorm
from batchgrow.run.log import Row
from batchgrow.run.timers import TIMING
from batchgrow.train import train
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

    Rows are written at 160, 288, 352, 480, 608 and 736 examples; those at 480 and 736 are
    evaluated.

    Args:
      changes: fields by their dotted names.
    """
    config = digits.get_config("increasing_batch")
    config.model = ConfigDict({"name": "tiny:TinyNet", "num_classes": 10, "dtype": "float32"})
    config.recipe.num_epochs = 0.5
    config.recipe.batch_size = 32
    config.recipe.boundaries_epochs = (0.25,)
    config.recipe.factor = 0.25
    config.plan.max_batch_size = 128
    config.noise.share = None
    config.log_every_epochs = 0.1
    config.evaluate_every_epochs = 0.3
    config.run.num_devices = 1
    config.run.eval_batch_size = 100
    config.run.tensorboard = False
    config.run.progress = False
    return change(config, changes or {})


def change(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """The config with fields set by their dotted names, whatever their types."""
    for name, value in changes.items():
        *folder, field = name.split(".")
        target = config
        for key in folder:
            target = target[key]
        with target.ignore_type(), target.unlocked():
            target[field] = value
    return config


def tiny_experiment(changes: Mapping[str, Any] | None = None, **fields: Any) -> Experiment:
    """The experiment of `make_config(changes)` with other fields."""
    return dataclasses.replace(make_experiment(make_config(changes)), **fields)


@dataclass(frozen=True)
class Trained:
    """What came out of a run.

    Attributes:
      outcome: of `train`.
      states: after each dispatch, host arrays, by examples seen.
      rows: without their timing.
    """

    outcome: Outcome
    states: dict[int, Any]
    rows: list[Row]

    @property
    def results(self) -> tuple[Any, list[Row]]:
        """The states where rows end, and the rows."""
        ends = [row["examples_seen"] for row in self.rows]
        return {end: self.states[end] for end in ends}, self.rows


def run_experiment(
    experiment: Experiment,
    workdir: pathlib.Path,
    *,
    stop: Callable[[int], bool] = lambda examples_seen: False,
    **options: Any,
) -> Trained:
    """`train` with the states kept.

    Args:
      stop: from the examples seen after a dispatch to whether the run stops there.
    """
    states: dict[int, Any] = {}

    def watch(point: Any, state: Any) -> bool:
        states[point.end_examples] = jax.tree.map(np.array, state)
        return stop(point.end_examples)

    outcome = train(experiment, str(workdir), watch=watch, **options)
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(workdir)]
    return Trained(outcome, states, rows)


def run_tiny(
    workdir: pathlib.Path, changes: Mapping[str, Any] | None = None, **options: Any
) -> Trained:
    """`run_experiment` with `make_config(changes)`."""
    return run_experiment(tiny_experiment(changes), workdir, **options)


def read_rows(workdir: pathlib.Path) -> list[Row]:
    """The rows of `metrics.jsonl`."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """The positions of the checkpoints of a run folder."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@dataclass(frozen=True, eq=False)
class NotInMemory:
    """A data set that gives examples only on request, and notes the indices.

    Attributes:
      data: where the examples come from.
      gathered: the indices of each request.
    """

    data: Dataset
    gathered: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def num_examples(self) -> int:
        return self.data.num_examples

    @property
    def example(self) -> Any:
        return self.data.example

    def gather(self, indices: np.ndarray) -> Any:
        self.gathered.append(indices)
        return self.data.gather(indices)


def assert_close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Every array differs by at most `tolerance` times its largest entry."""

    def compare(a: Any, b: Any) -> None:
        scale = np.abs(b).max(initial=1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

    jax.tree.map(compare, actual, expected)


_compilations: list[threading.Thread] = []  # in which thread each one happened


def num_compilations() -> int:
    """How many programs XLA has compiled, or read from its cache, since this was imported."""
    return len(_compilations)


def _count_compilation(event: str, _: float, **__: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations.append(threading.current_thread())


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def train_without_compiling(config: Any, workdir: Any, **options: Any) -> Outcome:
    """From a config to the outcome of `train`, or its error; fails if anything is compiled."""
    before = num_compilations()
    earlier = {*threading.enumerate()} - {threading.current_thread()}  # of another test
    try:
        return train(make_experiment(config), str(workdir), **options)
    finally:
        assert {*_compilations[before:]} <= earlier
