"""Experiments on noise, for benchmarks, and direct calls of their compiled updates."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import jax
import numpy as np

from batchgrow import config as library
from batchgrow import kernels, layout
from batchgrow.data.datasets import ArrayDataset
from batchgrow.engine import Engine
from batchgrow.experiment import MAX_EXAMPLES, Cadence, Execution, Experiment
from batchgrow.layout import Layout
from batchgrow.optimizer import ByBatch
from batchgrow.plan import FixedPlan, Recipe, Segment, curves
from batchgrow.tasks import Task

LEARNING_RATE = 1e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
MEAN, STD = 127.5, 64.0  # of the pixels
NEVER = 2**60  # examples


@dataclass(frozen=True)
class Updates:
    """A call that makes `num_updates` updates and returns when they are done.

    Attributes:
      call: makes them.
      num_updates: of one call.
      layout: of their batches.
      compile_seconds: what it took to compile them.
      cpu_kernels: what they are compiled with (see `batchgrow.kernels`).
    """

    call: Callable[[], None]
    num_updates: int
    layout: Layout
    compile_seconds: float
    cpu_kernels: str


def experiment(
    task: Task,
    data: ArrayDataset,
    plan: FixedPlan,
    *,
    optimizer: ByBatch,
    ghost_batch_size: int,
    dtype: str,
    execution: Execution,
) -> Experiment:
    """An experiment whose rows, evaluations and checkpoints are due at its end only.

    Args:
      task: what is trained.
      data: as from `images`.
      plan: as from `make_plan`.
      optimizer: as in `Experiment`.
      ghost_batch_size: examples that share batch statistics.
      dtype: of the model.
      execution: how it is executed.
    """
    test = ArrayDataset({name: array[:64] for name, array in data.arrays.items()})
    return Experiment(
        name="benchmark",
        task=task,
        train_data=data,
        test_data=test,
        plan=plan,
        optimizer=optimizer,
        cadence=Cadence(log=NEVER, evaluate=NEVER, checkpoint=NEVER),
        ghost_batch_size=ghost_batch_size,
        settings={"model": {"dtype": dtype}},
        execution=execution,
    )


def from_config(
    config: library.ConfigDict, image_size: int, batch_size: int, num_examples: int
) -> Experiment:
    """The task and the optimizer of a config of images, at one batch size, on noise."""
    momentum = config.recipe.momentum
    plan = make_plan([(batch_size, most_updates(batch_size))], num_examples, momentum)
    return experiment(
        library.make_task(config),
        images(num_examples, image_size, config.model.num_classes),
        plan,
        optimizer=library.optimizer_of(config, plan, momentum),
        ghost_batch_size=config.ghost_batch_size,
        dtype=config.model.dtype,
        execution=Execution(
            num_devices=config.run.num_devices,
            updates_per_dispatch=config.run.updates_per_dispatch,
            eval_batch_size=64,
        ),
    )


def make_plan(
    segments: Sequence[tuple[int, int]], num_examples: int, momentum: float = MOMENTUM
) -> FixedPlan:
    """Segments of `(batch_size, num_updates)` at a small constant learning rate."""
    starts = list(accumulate((size * updates for size, updates in segments), initial=0))
    recipe = Recipe(
        batch_size=segments[0][0],
        momentum=momentum,
        curve=curves.constant(LEARNING_RATE),
        num_examples=num_examples,
        num_epochs=starts[-1] / num_examples,
    )
    return FixedPlan(
        recipe,
        tuple(
            Segment(start, num_updates, batch_size, momentum, start)
            for (batch_size, num_updates), (start, _) in zip(
                segments, pairwise(starts), strict=True
            )
        ),
    )


def most_updates(batch_size: int) -> int:
    """The most updates that a run of this batch size can have."""
    return (MAX_EXAMPLES - 1) // batch_size


def images(num_examples: int, size: int, num_classes: int) -> ArrayDataset:
    """Noise, uint8 `(num_examples, size, size, 3)`, with random labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(num_classes, size=num_examples, dtype=np.int32)
    shape = (num_examples, size, size, 3)
    pixels = generator.integers(256, size=shape, dtype=np.uint8)
    return ArrayDataset({"image": pixels, "label": labels})


def updates(experiment: Experiment) -> Updates:
    """The update that `train` makes in the first segment, called on one batch again and again."""
    batch_size = experiment.plan.known([])[0].batch_size
    mesh = layout.make_mesh(experiment.execution.num_devices)
    with Engine(experiment, mesh) as engine:
        chosen = experiment.execution.cpu_kernels
        if chosen == "auto":
            is_worth = kernels.is_worth_measuring(experiment, mesh)
            chosen = engine.fastest_kernels(batch_size) if is_worth else kernels.DEFAULT
        engine.use_kernels(chosen)
        update = engine.updates.get(batch_size)
        compile_seconds = engine.updates.times[batch_size].compile_seconds
        state = engine.initial_state()
        segments = experiment.plan.known([])[:1]
        points = list(islice(experiment.plan.segment_points(segments, 0), update.max_updates))
        batches = engine.feed.batch(update.dispatch_positions(points))

    def call() -> None:
        nonlocal state
        state = update(state, batches, points)
        jax.block_until_ready(state.sums)

    return Updates(call, len(points), update.layout, compile_seconds, chosen)


def take_turns(
    calls: dict[str, Callable[[], None]], seconds_of_each: float
) -> dict[str, list[float]]:
    """Seconds of each call in each turn: two turns to warm up, three or more until time is up."""
    for _ in range(2):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds_of_each * len(calls)
    while any(len(times) < 3 for times in seconds.values()) or time.perf_counter() < end:
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds
