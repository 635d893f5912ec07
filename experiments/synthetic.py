"""Training on noise, for benchmarks: the images, and one dispatch as the loop makes it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from batchgrow import parallel
from batchgrow.config import Config
from batchgrow.data.feed import ResidentFeed, padded_batches
from batchgrow.data.sources import Images
from batchgrow.layout import Layout
from batchgrow.programs import split_evenly
from batchgrow.state import TrainState
from batchgrow.train import build

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Updates:
    """A call that makes `num_updates` and returns when they are done.

    Attributes:
      layout: of their batches.
      compile_seconds: what the program took.
    """

    call: Callable[[], None]
    num_updates: int
    layout: Layout
    compile_seconds: float


def updates(config: Config, batch_size: int, num_images: int) -> Updates:
    """The program that `train` would run for this batch size."""
    mesh = parallel.make_mesh(config.run.num_devices)
    noise = images(config, num_images)
    feed = ResidentFeed(noise, config.seed)
    test = split_evenly(next(padded_batches(noise, mesh.size)), mesh)
    blank, programs = build(config, mesh, config.recipe.momentum, feed, test)
    with programs:
        program = programs.train(batch_size)
        compile_seconds = programs.times[batch_size].compile_seconds
    states: list[TrainState] = [parallel.replicate(blank, mesh)]
    dataset = parallel.replicate(feed.dataset, mesh)
    count = program.updates_per_dispatch
    positions = np.arange(count * batch_size).reshape(count, batch_size)
    slots = parallel.local_device_slots(mesh)
    batches = feed.batch(program.layout.split(positions)[slots])
    scalars = (np.full(count, LEARNING_RATE, np.float32), np.int32(count))

    def call() -> None:
        arguments = parallel.host_arguments(batches, scalars, mesh)
        states[0], token = program.executable(states[0], *arguments, dataset)
        token.block_until_ready()

    return Updates(call, count, program.layout, compile_seconds)


def images(config: Config, num_images: int) -> Images:
    """Noise of the config's shape and number of classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(config.model.num_classes, size=num_images, dtype=np.int32)
    shape = (num_images, *config.data.image_shape)
    return Images(generator.integers(256, size=shape, dtype=np.uint8), labels)


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
