"""What the benchmarks share: the real loop on synthetic data, watched at every dispatch."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax
from absl import flags, logging

from batchgrow import curves, environment, parallel
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.config import Config
from batchgrow.data.feed import ResidentFeed, padded_batches
from batchgrow.loop import Cadence, Run
from batchgrow.run.signals import Preemption
from batchgrow.programs import split_evenly
from batchgrow.run.progress import Progress
from batchgrow.run.log import Clock
from batchgrow.plan.plan import Phase, Recipe, Schedule
from batchgrow.train import build
from configs import base
from experiments import cli, synthetic

NUM_CLASSES = 10
NEVER = 2**60  # examples
UNLIMITED = 10**9  # updates

JSON = flags.DEFINE_bool("json", False, "One line of JSON instead of the table.")
DEPTH = flags.DEFINE_integer(
    "depth", 16, "Of the wide ResNet: 10, 16, 22, ...; 0: a small ConvNet."
)
WIDTH = flags.DEFINE_integer("width", 1, "Of the wide ResNet.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Pixels.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "Of activations and products."
)

# What it gets: the batch size of a dispatch, and an array that is ready when that is done. Whether
# it has seen enough.
Watch = Callable[[int, jax.Array], bool]


def run(main: Callable[[], str]) -> None:
    """Parses flags and prints what `main` returns."""

    def printed() -> int:
        logging.set_verbosity(logging.WARNING)
        print(main())
        return 0

    cli.run(printed)


class NoCheckpoints(Checkpoints):
    """Keeps nothing: disks are not what is measured."""

    def __init__(self) -> None:
        """Makes no folder."""

    def save(self, *_: Any) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing to wait for."""


class Stop(Preemption):
    """Ends a run when `enough` is set, as a signal does."""

    enough = False

    def requested(self) -> bool:
        """Whether there is enough."""
        return self.enough or super().requested()


class Bursts:
    """A `Watch` that times bursts of dispatches; within one the loop runs ahead as it always does.

    Args:
      burst_seconds: length of a burst, about.
      ended: called after each with its number of dispatches and the seconds of one of them; whether
        there have been enough.
    """

    def __init__(self, burst_seconds: float, ended: Callable[[int, float], bool]):
        self._burst_seconds = burst_seconds
        self._ended = ended
        self._since = 0.0
        self._size = self._left = 3

    def __call__(self, _: int, token: jax.Array) -> bool:
        """Counts a dispatch; waits for it if it is the last of a burst."""
        self._left -= 1
        if self._left:
            return False
        token.block_until_ready()
        seconds = (time.perf_counter() - self._since) / self._size
        enough = False
        if self._size == 3:  # warm-up
            self._size = 5
        elif self._size == 5:  # tells how long a dispatch takes
            self._size = max(6, round(self._burst_seconds / seconds))
        else:
            enough = self._ended(self._size, seconds)
        self._left = self._size
        self._since = time.perf_counter()
        return enough


def make_config(*, ghost_batch_size: int, num_devices: int = 1, tiny: bool = False) -> Config:
    """Momentum SGD with the model of the flags, or a tiny one for updates of a millisecond."""
    depth, image_size = (0, 8) if tiny else (DEPTH.value, IMAGE_SIZE.value)
    model = {"name": "conv_net", "channels": 16}
    if depth:
        model = {"name": "wide_resnet", "depth": depth, "width": WIDTH.value}
    config = base.get_config()
    config.name = "benchmark"
    config.data.image_shape = (image_size, image_size, 3)
    config.data.mean = (127.5,)
    config.data.std = (64.0,)
    config.model.update({"num_classes": NUM_CLASSES, "dtype": DTYPE.value} | model)
    config.ghost_batch_size = ghost_batch_size
    config.optimizer.weight_decay = 5e-4
    config.run.num_devices = num_devices
    config.run.progress = False
    return config


def model_name(config: Config) -> str:
    """The model and its images, for people."""
    model, (height, width, _) = config.model, config.data.image_shape
    if model.name == "conv_net":
        return f"ConvNet-{model.channels}, {height} x {width}"
    return f"WRN-{model.depth}-{model.width}, {height} x {width}"


def make_schedule(phases: Sequence[tuple[int, int]], num_examples: int) -> Schedule:
    """Phases of `(batch_size, num_updates)` at a small constant learning rate."""
    bounds = list(accumulate((math.prod(phase) for phase in phases), initial=0))
    recipe = Recipe(
        batch_size=phases[0][0],
        momentum=0.9,
        learning_rate=curves.constant(synthetic.LEARNING_RATE),
        num_examples=num_examples,
        num_epochs=bounds[-1] / num_examples,
    )
    return Schedule(
        recipe,
        tuple(
            Phase(start, num_updates, batch_size, 0.9, start)
            for (batch_size, num_updates), start in zip(phases, bounds, strict=False)
        ),
    )


@contextmanager
def watched_run(
    config: Config, phases: Sequence[tuple[int, int]], watch: Watch, *, compile_ahead: bool
) -> Iterator[tuple[Run, Any]]:
    """A run as `train` makes it, and its first state; `watch` looks on.

    Args:
      phases: `(batch_size, num_updates)` of each.
    """
    mesh = parallel.make_mesh(config.run.num_devices)
    num_examples = max(4096, *(2 * batch_size for batch_size, _ in phases))
    images = synthetic.images(config, num_examples)
    feed = ResidentFeed(images, config.seed)
    test = split_evenly(next(padded_batches(images, mesh.size)), mesh)
    schedule = make_schedule(phases, num_examples)
    state, programs = build(config, mesh, 0.9, feed, test)
    train = programs.train

    def watched(global_batch_size: int) -> Any:
        program = train(global_batch_size)

        def executable(*args: Any) -> Any:
            state, token = program.executable(*args)
            stop.enough = watch(global_batch_size, token)
            return state, token

        return replace(program, executable=executable)

    programs.train = watched
    stop = Stop()
    with (
        programs,
        stop,
        Progress(schedule.end_examples, 0, config.name, enabled=False) as progress,
    ):
        yield (
            Run(
                schedule=schedule,
                cadence=Cadence(log=NEVER, evaluate=NEVER, checkpoint=NEVER),
                programs=programs,
                feed=feed,
                dataset=parallel.replicate(feed.dataset, mesh),
                test_batches=lambda: [parallel.shard(test, mesh)],
                log=None,
                checkpoints=NoCheckpoints(),
                clock=Clock(),
                progress=progress,
                preemption=stop,
                compile_ahead=compile_ahead,
                stop_at_phase_end=False,
                compiled={},
            ),
            parallel.replicate(state, mesh),
        )


def report(title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> str:
    """The rows and what they were measured on: a table, or with --json one line of JSON."""
    about = {
        "dtype": DTYPE.value,
        "devices": environment.devices(),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "command": environment.command(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("JAX_", "XLA_", "MALLOC_", "GLIBC_", "OMP_"))
        },
    }
    if JSON.value:
        return json.dumps({"benchmark": title, "rows": rows, "notes": notes, **about})
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, line, widths)) for line in cells]
    devices, versions = about["devices"], about["versions"]
    lines += [
        "",
        *notes,
        f"{about['dtype']}, {devices['count']} x {devices['kind']} ({devices['platform']}), "
        + ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax"))
        + f", commit {about['commit']}",
        " ".join([*(f"{k}={v}" for k, v in about["environment"].items()), about["command"]]),
    ]
    return "\n".join(lines)


def median(values: Sequence[float | None]) -> float | None:
    """The median of what is not None, or None."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
