"""One of several processes that train tiny.make_config: what tests/test_processes.py starts.

    python tests/member.py WORKDIR CHANGES_JSON --coordinator_address=HOST:PORT ...

The environment may say what is special about it:

- $OWN: more changes of the config, JSON; "roll" rolls the labels of the training set by one.
- $SIGNAL: what the process sends itself, after $DISPATCHES dispatches or in the dispatch after
  $CHECKPOINTS checkpoints.

Next to the run folder it leaves `WORKDIR.PROCESS.positions`, the examples seen after each dispatch;
`.reads`, the index of each example of the digits as it is read; and `.crops`, the stream position
of each image as it is cropped.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import flags
from tiny import make_config

from batchgrow.data.datasets import ArrayDataset
from batchgrow.data.jpeg_dataset import JpegDataset
from batchgrow.plan import Point
from batchgrow.train import train
from experiments import launch

HEARTBEAT_SECONDS = 10


@dataclass(frozen=True, eq=False)
class NotedArrays(ArrayDataset):
    """An array data set that notes the index of each example in a file."""

    note: Callable[..., None] = field(kw_only=True)

    def gather(self, indices: np.ndarray) -> Any:
        if indices.ndim:  # not the shape of one example
            self.note("reads", *indices.ravel())
        return super().gather(indices)


def main(arguments: list[str]) -> int:
    """Trains, as experiments.train does, and takes notes."""
    workdir, changes = arguments[0], json.loads(arguments[1])
    own = json.loads(os.environ.get("OWN", "{}"))
    rolls = own.pop("roll", False)

    def note(what: str, *values: int) -> None:
        with open(f"{workdir}.{flags.FLAGS.process_id}.{what}", "a") as file:
            print(*values, file=file)

    experiment = launch.experiment_of(make_config(changes | own))
    data: Any = experiment.train_data
    if isinstance(data, ArrayDataset):
        arrays = dict(data.arrays)
        if rolls:
            arrays["label"] = np.roll(arrays["label"], 1)
        data = NotedArrays(arrays, data.facts, note=note)
    if isinstance(data, JpegDataset):
        crop = data.crop

        def noted_crop(jpeg: bytes, position: int) -> Any:
            note("crops", position)
            return crop(jpeg, position)

        data = dataclasses.replace(data, crop=noted_crop)
    dispatches, saves, before = 0, 0, 0

    def watch(point: Point, _: Any) -> bool:
        nonlocal dispatches, saves, before
        dispatches += 1
        note("positions", point.end_examples)
        if due(dispatches, saves):
            os.environ["DISPATCHES"] = os.environ["CHECKPOINTS"] = ""
            os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
            time.sleep(2.0)  # JAX's service tells the others within a second.
        every = experiment.cadence.checkpoint
        saves += before // every < point.end_examples // every
        before = point.end_examples
        return False

    experiment = dataclasses.replace(experiment, train_data=data)
    outcome = train(experiment, workdir, override_config=launch.OVERRIDE.value, watch=watch)
    return launch.status_of(experiment, workdir, outcome)


def due(dispatches: int, saves: int) -> bool:
    """Whether to send the signal now."""
    wanted = os.environ.get("DISPATCHES"), os.environ.get("CHECKPOINTS")
    return str(dispatches) == wanted[0] or str(saves) == wanted[1]


if __name__ == "__main__":
    launch.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    arguments = sys.argv[1:3]
    del sys.argv[1:3]
    launch.launch(lambda _: main(arguments))
