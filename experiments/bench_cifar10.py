"""Images per second of training WRN on CIFAR-10 shapes, per batch size; PyTorch's beside it.

    python -m experiments.bench_cifar10 --batch_sizes=128,640,3200 --torch

Measures the update that `train` runs: gather, augmentation, forward, backward, optimizer. With
--torch a plain PyTorch step of the same network (channels last, autocast for bfloat16, nothing
but forward, backward and SGD on one fixed batch) takes turns with it on the same device. PyTorch
is no dependency: pip install torch (on a machine without a GPU, its CPU build).
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np
from absl import flags

from batchgrow import parallel
from batchgrow.data.augment import make_prepare
from batchgrow.data.feed import ResidentFeed
from batchgrow.data.sources import Images
from batchgrow.environment import commit, devices, versions
from batchgrow.flops import peak_flops, training_flops
from batchgrow.models import make_model
from batchgrow.optimizer import make_optimizer
from batchgrow.programs import Programs, split_evenly
from batchgrow.state import TrainState, create_state
from experiments import cli

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["128", "640", "3200", "5120"], "Global.")
_DEPTH = flags.DEFINE_integer("depth", 16, "Of the WRN.")
_WIDTH = flags.DEFINE_integer("width", 4, "Of the WRN.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of activations.")
_UPDATES = flags.DEFINE_integer("updates_per_dispatch", 0, "As in config.run.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "For each batch size and each framework.")
_TORCH = flags.DEFINE_bool("torch", False, "Measure PyTorch too.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")

IMAGE_SHAPE = (32, 32, 3)
GHOST = 128


def main() -> int:
    """Prints a row per batch size."""
    model = make_model(
        "wide_resnet",
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_classes=10,
        ghost_batch_size=GHOST,
        axis_name=parallel.AXIS_NAME,
        dtype=_DTYPE.value,
    )
    flops = training_flops(model.clone(axis_name=None), IMAGE_SHAPE)
    peak = peak_flops(jax.devices()[0].device_kind, _DTYPE.value)
    rows = []
    for batch_size in map(int, _BATCH_SIZES.value):
        rows.append(_measure(model, batch_size, flops, peak))
        if not _JSON.value:
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if _JSON.value:
        about = {"devices": devices(), "versions": versions(), "commit": commit()}
        about |= {"depth": _DEPTH.value, "width": _WIDTH.value, "dtype": _DTYPE.value}
        print(json.dumps({**about, "flops_per_image": flops, "rows": rows}, indent=2))
    return 0


def _measure(model: Any, batch_size: int, flops: float, peak: float | None) -> dict[str, Any]:
    ours, updates, seconds_to_compile = _jax_update(model, batch_size)
    contenders = {"ours": (ours, updates)}
    if _TORCH.value:
        from experiments.torch_wide_resnet import torch_update

        update = torch_update(_DEPTH.value, _WIDTH.value, batch_size, _DTYPE.value)
        contenders["torch"] = (update, 1)
    times = _take_turns({name: call for name, (call, _) in contenders.items()})
    rates = {n: batch_size * contenders[n][1] / median(times[n]) for n in contenders}
    row: dict[str, Any] = {"batch_size": batch_size, "images_per_second": round(rates["ours"])}
    if peak is not None:
        row["share_of_peak"] = round(rates["ours"] * flops / peak / jax.device_count(), 4)
    row["compile_seconds"] = round(seconds_to_compile, 1)
    if _TORCH.value:
        row["torch_images_per_second"] = round(rates["torch"])
        row["ratio"] = round(rates["ours"] / rates["torch"], 2)
    return row


def _take_turns(calls: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each call, each after a warm-up, one after the other until time is up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    end = time.perf_counter() + _SECONDS.value * len(calls)
    while time.perf_counter() < end or len(times["ours"]) < 3:
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return times


def _jax_update(model: Any, batch_size: int) -> tuple[Callable[[], None], int, float]:
    """One dispatch of our update, how many updates that is, and what it cost to compile."""
    mesh = parallel.make_mesh()
    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (50_000, *IMAGE_SHAPE), np.uint8)
    feed = ResidentFeed(Images(images, noise.integers(0, 10, 50_000).astype(np.int32)), seed=0)
    dataset = parallel.replicate(feed.dataset, mesh)
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=5e-4)
    host_state = create_state(model, optimizer, IMAGE_SHAPE, seed=0)
    prepare = {
        augment: make_prepare(augment, mean=(120.0,) * 3, std=(60.0,) * 3, seed=0)
        for augment in ("none", "crop_flip")
    }
    blank = np.zeros((mesh.size, *IMAGE_SHAPE), np.uint8)
    label = np.zeros(mesh.size, np.int32)
    test_batch = {"image": blank, "label": label, "mask": label.astype(np.float32)}
    programs = Programs(
        model=model,
        optimizer=optimizer,
        prepare_train=prepare["crop_flip"],
        prepare_test=prepare["none"],
        label_smoothing=0.0,
        state=host_state,
        feed=feed,
        test_batch=split_evenly(test_batch, mesh),
        mesh=mesh,
        ghost_batch_size=GHOST,
        max_per_device_batch_size=None,
        updates_per_dispatch=_UPDATES.value,
    )
    program = programs.train(batch_size)
    updates = program.updates_per_dispatch
    compiled = programs.times[batch_size].compile_seconds
    state: list[TrainState] = [parallel.replicate(host_state, mesh)]
    rates = np.full(updates, 0.01, np.float32)
    scalars = parallel.replicate((rates, np.int32(updates)), mesh)
    seen = [0]

    def call() -> None:
        positions = seen[0] + np.arange(updates * batch_size).reshape(updates, batch_size)
        batches = parallel.shard(feed.batch(program.layout.split(positions)), mesh)
        state[0], token = program.executable(state[0], batches, *scalars, dataset)
        seen[0] += updates * batch_size
        token.block_until_ready()

    return call, updates, compiled


if __name__ == "__main__":
    cli.run(main)
