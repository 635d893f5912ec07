"""Measure examples per second of ResNets and Inception-ResNet-V2 at ImageNet's size.

    python -m experiments.bench_imagenet --batch_sizes=32,64,128,256

The measured update is that of `experiments.imagenet` on all devices together: forward, backward,
all-reduce and optimizer, on noise that the devices already hold. `experiments.bench_input` measures
the input. Give the resulting `seconds_per_example` to `experiments.plan`.
"""

import json
from statistics import median
from typing import Any

import jax
from absl import flags, logging

from batchgrow.config import ConfigDict
from batchgrow.layout import make_mesh
from batchgrow.run import environment
from batchgrow.run.summary import share_of_peak
from configs import imagenet_inception_resnet_v2, imagenet_resnet50
from experiments import cli, synthetic

_MODELS = flags.DEFINE_list(
    "models",
    ["resnet50", "inception_resnet_v2"],
    "Models: inception_resnet_v2, resnet18, 34, 50, 101, 152.",
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["32", "64", "128", "256"], "Batch sizes of each device."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Side of an image in pixels; 0: the model's own, 224 or 299."
)
_GHOST = flags.DEFINE_integer(
    "ghost_batch_size", 32, "Examples of a ghost batch; a smaller batch is one ghost batch."
)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of activations.")
_SECONDS = flags.DEFINE_float(
    "seconds", 5.0, "Seconds of measurement for each row, without compilation."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")

NUM_EXAMPLES = 2048  # on each device, or a batch, if that is more


def main(_: list[str]) -> int:
    """Prints a row per model and batch size."""
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_compilation_cache", False)  # it would be timed
    rows = []
    for name in _MODELS.value:
        for batch_size in map(int, _BATCH_SIZES.value):
            rows.append(_measure(name, _config(name, batch_size), batch_size))
            if not _JSON.value:
                print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if _JSON.value:
        about = {"benchmark": "bench_imagenet", "dtype": _DTYPE.value} | environment.recorded()
        result = about | {"rows": rows}
        print(json.dumps(result, indent=2))
    return 0


def _config(name: str, batch_size: int) -> ConfigDict:
    """The experiment's, except for what the flags say."""
    if name == "inception_resnet_v2":
        config = imagenet_inception_resnet_v2.get_config()
    elif name.startswith("resnet") and name.removeprefix("resnet").isdigit():
        config = imagenet_resnet50.get_config()
        config.model.depth = int(name.removeprefix("resnet"))
    else:
        raise ValueError(f"--models={name} is neither inception_resnet_v2 nor resnet and a depth")
    if _IMAGE_SIZE.value:
        config.data.image_size = _IMAGE_SIZE.value
    config.model.dtype = _DTYPE.value
    config.ghost_batch_size = min(_GHOST.value, batch_size)
    return config


def _measure(name: str, config: ConfigDict, per_device: int) -> dict[str, Any]:
    mesh, image_size = make_mesh(), config.data.image_size
    batch_size = per_device * mesh.size
    experiment = synthetic.from_config(
        config, image_size, batch_size, max(NUM_EXAMPLES, batch_size)
    )
    ours = synthetic.updates(experiment)
    seconds = median(synthetic.take_turns({"ours": ours.call}, _SECONDS.value)["ours"])
    rate = batch_size * ours.num_updates / seconds
    row: dict[str, Any] = {
        "model": name,
        "image_size": image_size,
        "per_device_batch_size": per_device,
        "num_microbatches": ours.layout.num_microbatches,
        "examples_per_second": round(rate, 1),
        "seconds_per_example": float(f"{mesh.size / rate:.4g}"),
    }
    share = share_of_peak(experiment, mesh)
    if share is not None:
        row["share_of_peak"] = round(rate * share, 4)
    row["compile_seconds"] = round(ours.compile_seconds, 1)
    return row


if __name__ == "__main__":
    cli.run(main)
