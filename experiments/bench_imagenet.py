"""Measure examples per second of ResNets and Inception-ResNet-V2 at ImageNet's size.

    python -m experiments.bench_imagenet --batch_sizes=32,64,128,256

The measured update is that of `experiments.imagenet` on all devices together: forward, backward,
all-reduce and optimizer, on noise that the devices already hold. `experiments.bench_input` measures
the input. Give the resulting `seconds_per_example` to `experiments.plan`.
"""

import sys
from statistics import median
from typing import Any

from absl import flags

from batchgrow.config import ConfigDict
from batchgrow.cost import share_of_peak
from batchgrow.layout import make_mesh
from configs import imagenet_inception_resnet_v2, imagenet_resnet50
from experiments import benchmark, synthetic

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

NUM_EXAMPLES = 2048  # on each device, or a batch, if that is more


def main() -> str:
    """The table, a row per model and batch size; each is shown when it is measured."""
    rows = []
    for name in _MODELS.value:
        for batch_size in map(int, _BATCH_SIZES.value):
            rows.append(_measure(name, _config(name, batch_size), batch_size))
            shown = [f"{k} {v}" for k, v in rows[-1].items() if v is not None]
            print("  ".join(shown), file=sys.stderr, flush=True)
    return benchmark.report("bench_imagenet", rows, dtype=_DTYPE.value)


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
    share = share_of_peak(experiment, mesh)
    return {
        "model": name,
        "image_size": image_size,
        "per_device_batch_size": per_device,
        "num_microbatches": ours.layout.num_microbatches,
        "examples_per_second": round(rate, 1),
        "seconds_per_example": float(f"{mesh.size / rate:.4g}"),
        "share_of_peak": share and round(rate * share, 4),
        "compile_seconds": round(ours.compile_seconds, 1),
    }


if __name__ == "__main__":
    benchmark.run(main)
