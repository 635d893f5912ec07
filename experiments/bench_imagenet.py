"""Images per second of training ResNets and Inception-ResNet-V2 at ImageNet's size.

    python -m experiments.bench_imagenet --batch_sizes=32,64,128,256

Measures the update that `experiments.imagenet` runs, on all devices together: forward, backward,
all-reduce, optimizer, for synthetic pictures that lie on the devices already. What hosts can
prepare is `experiments.bench_input`'s to say. `seconds_per_image` is what `experiments.plan` takes.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from batchgrow import environment, flops, parallel
from batchgrow.config import Config, make_network
from batchgrow.data.feed import ResidentFeed, test_batches
from batchgrow.data.sources import Images
from batchgrow.programs import TrainProgram, split_evenly
from batchgrow.train import build
from configs import imagenet_inception_resnet_v2, imagenet_resnet50
from experiments import cli

_MODELS = flags.DEFINE_list(
    "models", ["resnet50", "inception_resnet_v2"], "Those, or resnet18, 34, 101, 152."
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["32", "64", "128", "256"], "Of each device.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "Pixels; 0: the model's own, 224 or 299.")
_GHOST = flags.DEFINE_integer("ghost_batch_size", 32, "Smaller batches are one ghost batch each.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of activations.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "For each row, compilation aside.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")

NUM_IMAGES = 2048  # that lie on each device, or a batch, if that is more


def main() -> int:
    """Prints a row per model and batch size."""
    logging.set_verbosity(logging.WARNING)
    rows = []
    for name in _MODELS.value:
        for batch_size in map(int, _BATCH_SIZES.value):
            rows.append(_measure(name, _config(name, batch_size), batch_size))
            if not _JSON.value:
                print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if _JSON.value:
        about = {"devices": environment.devices(), "versions": environment.versions()}
        about |= {"commit": environment.commit(), "command": environment.command()}
        result = {"benchmark": "bench_imagenet", "dtype": _DTYPE.value, **about, "rows": rows}
        print(json.dumps(result, indent=2))
    return 0


def _config(name: str, batch_size: int) -> Config:
    """The experiment's, but for what the flags say and where the pictures come from."""
    if name == "inception_resnet_v2":
        config = imagenet_inception_resnet_v2.get_config()
    elif name.startswith("resnet") and name.removeprefix("resnet").isdigit():
        config = imagenet_resnet50.get_config()
        config.model.depth = int(name.removeprefix("resnet"))
    else:
        raise ValueError(f"--models={name} is neither inception_resnet_v2 nor resnet and a depth")
    if _IMAGE_SIZE.value:
        config.data.image_shape = (_IMAGE_SIZE.value, _IMAGE_SIZE.value, 3)
    config.model.dtype = _DTYPE.value
    config.ghost_batch_size = min(_GHOST.value, batch_size)
    return config


def _measure(name: str, config: Config, per_device: int) -> dict[str, Any]:
    mesh = parallel.make_mesh()
    images = _synthetic_images(config, max(NUM_IMAGES, per_device * mesh.size))
    feed = ResidentFeed(images, config.seed)
    test = split_evenly(next(test_batches(images, mesh.size)), mesh)
    state, programs = build(config, mesh, config.recipe.momentum, feed, test)
    with programs:
        program = programs.train(per_device * mesh.size)
        compiled = programs.times[per_device * mesh.size]
    update = _dispatch(program, feed, state, mesh)
    seconds = _median_seconds(update) / program.updates_per_dispatch
    rate = per_device * mesh.size / seconds
    row: dict[str, Any] = {
        "model": name,
        "image_size": config.data.image_shape[0],
        "per_device_batch_size": per_device,
        "num_microbatches": program.layout.num_microbatches,
        "images_per_second": round(rate, 1),
        "seconds_per_image": float(f"{mesh.size / rate:.4g}"),
    }
    peak = flops.peak_flops(jax.devices()[0].device_kind, _DTYPE.value)
    if peak is not None:
        operations = flops.training_flops(make_network(config), tuple(config.data.image_shape))
        row["share_of_peak"] = round(rate * operations / peak / mesh.size, 4)
    row["compile_seconds"] = round(compiled.compile_seconds, 1)
    return row


def _synthetic_images(config: Config, num_images: int) -> Images:
    noise = np.random.default_rng(0)
    shape = (num_images, *config.data.image_shape)
    labels = noise.integers(0, config.model.num_classes, num_images, np.int32)
    return Images(noise.integers(0, 256, shape, np.uint8), labels)


def _dispatch(
    program: TrainProgram, feed: ResidentFeed, state: Any, mesh: Any
) -> Callable[[], None]:
    """One call of the program, as the loop makes it, waited for."""
    dataset = parallel.replicate(feed.dataset, mesh)
    states = [parallel.replicate(state, mesh)]
    updates = program.updates_per_dispatch
    batch_size = program.layout.global_batch_size
    positions = np.arange(updates * batch_size).reshape(updates, batch_size)
    slots = parallel.local_device_slots(mesh)
    scalars = (np.full(updates, 1e-3, np.float32), np.int32(updates))
    batches = feed.batch(program.layout.split(positions)[slots])

    def call() -> None:
        arguments = parallel.host_arguments(batches, scalars, mesh)
        states[0], token = program.executable(states[0], *arguments, dataset)
        token.block_until_ready()

    return call


def _median_seconds(call: Callable[[], None]) -> float:
    """Of a call, after two to warm up."""
    call()
    call()
    times = []
    end = time.perf_counter() + _SECONDS.value
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    cli.run(main)
