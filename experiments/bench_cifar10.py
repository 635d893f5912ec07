"""Images per second of training WRN on CIFAR-10 shapes, per batch size; PyTorch's beside it.

    python -m experiments.bench_cifar10 --batch_sizes=128,640,3200 --torch [--json]

Measures the update that `train` runs: gather, augmentation, forward, backward, optimizer. With
--torch a plain PyTorch step of the same network (channels last, autocast for bfloat16, nothing
but forward, backward and SGD on one fixed batch) takes turns with it on the same device. PyTorch
is no dependency: pip install torch (on a machine without a GPU, its CPU build).
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np
from absl import flags

from batchgrow import parallel
from batchgrow.config import Config
from batchgrow.data.feed import ResidentFeed, test_batches
from batchgrow.programs import split_evenly
from batchgrow.state import TrainState
from batchgrow.train import build, share_of_peak_per_rate
from configs import cifar10
from experiments import timing

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["128", "640", "3200", "5120"], "Global.")
_UPDATES = flags.DEFINE_integer("updates_per_dispatch", 0, "As in config.run.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "For each batch size and each framework.")
_TORCH = flags.DEFINE_bool("torch", False, "Measure PyTorch too.")
flags.set_default(timing.WIDTH, 4)
flags.set_default(timing.DTYPE, "bfloat16")


def main() -> str:
    """The table, a row per batch size."""
    config = cifar10.get_config()
    config.model.depth = timing.DEPTH.value
    config.model.width = timing.WIDTH.value
    config.model.dtype = timing.DTYPE.value
    config.run.updates_per_dispatch = _UPDATES.value
    rows = [bench(config, int(batch_size)) for batch_size in _BATCH_SIZES.value]
    model = timing.model_name(config)
    notes = [f"{model}, ghost batch {config.ghost_batch_size}, {jax.device_count()} devices"]
    if _TORCH.value:
        from experiments.torch_wide_resnet import about

        notes.append(about())
    return timing.report("bench_cifar10", rows, notes)


def bench(config: Config, batch_size: int) -> dict[str, Any]:
    """One row: medians of each framework's updates, and of their ratio within a turn."""
    contenders = {"ours": jax_updates(config, batch_size)}
    if _TORCH.value:
        from experiments.torch_wide_resnet import torch_update

        model = config.model
        update = torch_update(model.depth, model.width, batch_size, model.dtype)
        contenders["torch"] = (update, 1)
    seconds = take_turns(contenders)
    rate = batch_size / median(seconds["ours"])
    share = share_of_peak_per_rate(config, parallel.make_mesh())
    row = {
        "batch_size": batch_size,
        "images_per_second": rate,
        "share_of_peak": share and rate * share,
    }
    if _TORCH.value:
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
        row["torch_images_per_second"] = batch_size / median(seconds["torch"])
        row["ratio"] = median(ratios)
    return row | {"turns": len(seconds["ours"])}


def take_turns(contenders: dict[str, tuple[Callable[[], None], int]]) -> dict[str, list[float]]:
    """Seconds of an update of each contender in each turn, after a warm-up, until time is up.

    Args:
      contenders: by name, a call that returns when its updates are done, and how many those are.
    """
    for call, _ in contenders.values():
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + _SECONDS.value * len(contenders)
    while time.perf_counter() < end or len(seconds["ours"]) < 3:
        for name, (call, num_updates) in contenders.items():
            started = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - started) / num_updates)
    return seconds


def jax_updates(config: Config, batch_size: int) -> tuple[Callable[[], None], int]:
    """One dispatch of our updates, and how many those are."""
    mesh = parallel.make_mesh()
    images = timing.synthetic_images(config.data.num_train_examples, config.data.image_shape[0])
    feed = ResidentFeed(images, config.seed)
    test = split_evenly(next(test_batches(images, mesh.size)), mesh)
    blank, programs = build(config, mesh, 0.9, feed, test)
    program = programs.train(batch_size)
    num_updates = program.updates_per_dispatch
    state: list[TrainState] = [parallel.replicate(blank, mesh)]
    dataset = parallel.replicate(feed.dataset, mesh)
    rates = np.full(num_updates, timing.LEARNING_RATE, np.float32)
    scalars = parallel.replicate((rates, np.int32(num_updates)), mesh)
    seen = [0]

    def call() -> None:
        positions = np.arange(num_updates * batch_size).reshape(num_updates, batch_size)
        batches = parallel.shard(feed.batch(program.layout.split(seen[0] + positions)), mesh)
        state[0], token = program.executable(state[0], batches, *scalars, dataset)
        seen[0] += num_updates * batch_size
        token.block_until_ready()

    return call, num_updates


if __name__ == "__main__":
    timing.run(main)
