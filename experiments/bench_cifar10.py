"""Measure examples per second of a wide ResNet on CIFAR-10 shapes, for each batch size.

    python -m experiments.bench_cifar10 --batch_sizes=128,640,3200 --torch [--json]

The measured update is that of `train`: gather, augmentation, forward, backward, optimizer. With
--torch a plain PyTorch step of the same network alternates with it on the same device. That step
makes only forward, backward and SGD on one fixed batch, in channels-last format and with autocast
for bfloat16. PyTorch must be installed for it (on a machine without a GPU, its CPU build).
"""

import importlib.util
import os
from statistics import median
from typing import Any

import jax
from absl import flags

from batchgrow.config import ConfigDict
from batchgrow.cost import share_of_peak
from batchgrow.layout import make_mesh
from configs import cifar10
from experiments import benchmark, synthetic, timing

_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["128", "640", "3200", "5120"], "Batch sizes, on all devices together."
)
_UPDATES = flags.DEFINE_integer(
    "updates_per_dispatch", None, "Updates in a call; by default as many as training makes."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 3.0, "Seconds of measurement for each batch size and framework."
)
_TORCH = flags.DEFINE_bool("torch", False, "Measure PyTorch too.")
flags.set_default(timing.WIDTH, 4)
flags.set_default(timing.DTYPE, "bfloat16")

IMAGE_SIZE = 32  # pixels


def main() -> str:
    """The table, a row per batch size."""
    config = cifar10.get_config()
    config.model.depth = timing.DEPTH.value
    config.model.width = timing.WIDTH.value
    config.model.dtype = timing.DTYPE.value
    config.run.updates_per_dispatch = _UPDATES.value
    if _TORCH.value:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")  # the rest for PyTorch
        if torch_device() == "cuda":
            config.run.num_devices = 1  # as PyTorch
    num_devices = make_mesh(config.run.num_devices).size
    try:
        batch_sizes = [int(batch_size) for batch_size in _BATCH_SIZES.value]
    except ValueError:
        raise ValueError(
            f"--batch_sizes={','.join(_BATCH_SIZES.value)}: give whole numbers"
        ) from None
    rows = [bench(config, batch_size) for batch_size in batch_sizes]
    model = f"WRN-{config.model.depth}-{config.model.width}, {IMAGE_SIZE} x {IMAGE_SIZE}"
    notes = [f"{model}, ghost batch {config.ghost_batch_size}, {num_devices} device(s)"]
    if _TORCH.value:
        from experiments.torch_wide_resnet import about

        notes.append(about(torch_device()))
    return benchmark.report("bench_cifar10", rows, notes, dtype=timing.DTYPE.value)


def bench(config: ConfigDict, batch_size: int) -> dict[str, Any]:
    """One row: medians of each framework's updates, and of their ratio within a turn."""
    experiment = synthetic.from_config(
        config, IMAGE_SIZE, batch_size, config.data.num_train_examples
    )
    ours = synthetic.updates(experiment)
    calls = {"ours": ours.call}
    if _TORCH.value:
        from experiments.torch_wide_resnet import torch_updates

        model, count = config.model, ours.num_updates
        calls["torch"] = torch_updates(
            model.depth, model.width, batch_size, model.dtype, count, torch_device()
        )
    try:
        found = synthetic.take_turns(calls, _SECONDS.value)
    except RuntimeError as error:
        if "CUDA out of memory" not in str(error):
            raise
        found = synthetic.take_turns({"ours": ours.call}, _SECONDS.value) | {"torch": []}
    seconds = {name: [s / ours.num_updates for s in turns] for name, turns in found.items()}
    per_update = seconds["ours"]
    rate = batch_size / median(per_update)
    share = share_of_peak(experiment, make_mesh(config.run.num_devices))
    row = {
        "batch_size": batch_size,
        "examples_per_second": rate,
        "share_of_peak": share and rate * share,
        "cpu_kernels": ours.cpu_kernels,
        "compile_seconds": ours.compile_seconds,
    }
    if _TORCH.value:
        theirs = seconds["torch"]
        row["torch_examples_per_second"] = timing.median([batch_size / x for x in theirs])
        row["ratio"] = timing.median([b / a for a, b in zip(per_update, theirs, strict=False)])
    return row | {"turns": len(per_update)}


def torch_device() -> str:
    """PyTorch's name of the kind of device that JAX uses.

    Raises:
      ValueError: if PyTorch is missing, or has no such device.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError("--torch: PyTorch is missing; pip install torch, or leave out --torch")
    import torch

    platform = jax.devices()[0].platform
    if platform == "cpu":
        return "cpu"
    if platform == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise ValueError(
        f"--torch: PyTorch {torch.__version__} has no {platform} here, which JAX uses; install a "
        "build that has, or leave out --torch"
    )


if __name__ == "__main__":
    benchmark.run(main)
