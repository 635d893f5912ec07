"""Timing of the real training loop on synthetic data, for the benchmarks."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from batchgrow.experiment import Execution, Experiment
from batchgrow.layout import AXIS_NAME
from batchgrow.models import make_model
from batchgrow.optimizer import make_optimizer
from batchgrow.plan import Point
from batchgrow.step import TrainState
from batchgrow.tasks.classification import Classification
from batchgrow.train import Watch
from experiments import synthetic
from experiments.watched import train_watched

NUM_CLASSES = 10

DEPTH = flags.DEFINE_integer(
    "depth", 16, "Depth of the wide ResNet: 10, 16, 22, ...; 0: a small ConvNet."
)
WIDTH = flags.DEFINE_integer("width", 1, "Width of the wide ResNet.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Side of an image in pixels.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "Dtype of activations and products."
)


class Bursts:
    """A `Watch` that times bursts of dispatches. Within a burst the loop runs ahead as always.

    Args:
      burst_seconds: the approximate length of a burst.
      ended: called after each burst with its number of updates and the seconds of one update;
        returns whether there have been enough bursts.
    """

    def __init__(self, burst_seconds: float, ended: Callable[[int, float], bool]):
        self._burst_seconds = burst_seconds
        self._ended = ended
        self._since = 0.0
        self._updates_before = 0
        self._size = self._left = 3

    def __call__(self, point: Point, state: TrainState) -> bool:
        """Counts a dispatch; waits for it if it is the last of a burst."""
        self._left -= 1
        if self._left:
            return False
        state.sums["loss"].block_until_ready()
        seconds = time.perf_counter() - self._since
        num_updates = point.update + 1 - self._updates_before
        enough = False
        if self._size == 3:  # warm-up
            self._size = 5
        elif self._size == 5:  # measures how long a dispatch takes
            self._size = max(6, round(self._burst_seconds / seconds * self._size))
        else:
            enough = self._ended(num_updates, seconds / num_updates)
        self._left = self._size
        self._updates_before = point.update + 1
        self._since = time.perf_counter()
        return enough


def make_experiment(
    segments: Sequence[tuple[int, int]],
    *,
    ghost_batch_size: int,
    tiny: bool = False,
    **execution: Any,
) -> Experiment:
    """Momentum SGD with the model of the flags, or a tiny one for updates of a millisecond.

    Args:
      segments: `(batch_size, num_updates)` of each.
      ghost_batch_size: examples that share batch statistics.
      tiny: whether to ignore the flags.
      execution: fields of `Execution`.
    """
    depth, image_size = (0, 8) if tiny else (DEPTH.value, IMAGE_SIZE.value)
    model = {"name": "conv_net", "channels": 16}
    if depth:
        model = {"name": "wide_resnet", "depth": depth, "width": WIDTH.value}
    network = make_model(
        **model,
        num_classes=NUM_CLASSES,
        dtype=DTYPE.value,
        ghost_batch_size=ghost_batch_size,
        axis_name=AXIS_NAME,
    )
    num_examples = max(4096, *(2 * batch_size for batch_size, _ in segments))
    # What is compared has the same kernels, so none are measured.
    defaults = {"num_devices": 1, "eval_batch_size": 64, "compile_ahead": False}
    defaults |= {"cpu_kernels": "xla"}
    return synthetic.experiment(
        Classification(network, NUM_CLASSES, mean=(synthetic.MEAN,), std=(synthetic.STD,)),
        synthetic.images(num_examples, image_size, NUM_CLASSES),
        synthetic.make_plan(segments, num_examples),
        optimizer=make_optimizer(
            "momentum", momentum=synthetic.MOMENTUM, weight_decay=synthetic.WEIGHT_DECAY
        ),
        ghost_batch_size=ghost_batch_size,
        dtype=DTYPE.value,
        execution=Execution(**(defaults | execution), tensorboard=False, progress=False),
    )


def model_name(experiment: Experiment) -> str:
    """The model and the size of its images, for people."""
    model: Any = experiment.task.model  # type: ignore
    height, width, _ = experiment.train_data.example["image"].shape
    if hasattr(model, "channels"):
        return f"ConvNet-{model.channels}, {height} x {width}"
    return f"WRN-{model.depth}-{model.width}, {height} x {width}"


def train(experiment: Experiment, watch: Watch) -> None:
    """Trains in a temporary folder until `watch` has seen enough."""
    with tempfile.TemporaryDirectory() as workdir:
        train_watched(experiment, workdir, watch)


def median(values: Sequence[float | None]) -> float | None:
    """The median of what is not None, or None."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
