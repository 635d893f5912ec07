"""ImageNet with Inception-ResNet-V2: Smith et al. (2018), Section 5.3.

    python -m experiments.imagenet --config=configs/imagenet_inception_resnet_v2.py:VARIANT \
        --workdir=DIR

Updates of 90 epochs; the learning rate, or the noise by the batch, falls by 10 at 30, 60 and 80:

    decaying_lr       batch 8192                                               14,075
    increasing_batch  8192 -> 81920 at the first step, then the rate falls      5,630
    momentum_0_9      ghost batch 64, batches up to 65536                       5,865
    momentum_0_95     and momentum 0.95, from 16384 on                          3,519
    momentum_0_975    and momentum 0.975, from 32768 on                         2,346

L2 and augmentation are those of `imagenet_resnet50`; the paper's could not be verified.
"""

from batchgrow.config import ConfigDict
from configs.imagenet_resnet50 import imagenet

VARIANTS = (
    "decaying_lr",
    "increasing_batch",
    "momentum_0_9",
    "momentum_0_95",
    "momentum_0_975",
)


def get_config(variant: str = "decaying_lr") -> ConfigDict:
    """The recipe at 8192 with the plan of one of `VARIANTS`."""
    config = imagenet()
    config.name = "imagenet_inception_resnet_v2"
    config.variant = variant
    config.data.image_size = 299
    config.task.mean = (127.5, 127.5, 127.5)
    config.task.std = (127.5, 127.5, 127.5)
    config.model.name = "inception_resnet_v2"
    config.ghost_batch_size = 32
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_on = "kernels"
    config.recipe.num_epochs = 90.0
    config.recipe.batch_size = 8192
    config.recipe.learning_rate = 3.0
    config.recipe.boundaries_epochs = (30.0, 60.0, 80.0)
    config.recipe.factor = 0.1

    match variant:
        case "decaying_lr":
            config.plan.name = "decay"
        case "increasing_batch":
            config.plan.name = "hybrid"
            config.plan.max_batch_size = 81_920
        case "momentum_0_9" | "momentum_0_95" | "momentum_0_975":
            config.ghost_batch_size = 64
            config.plan.name = "grow"
            config.plan.max_batch_size = 65536
            config.plan.momentum = float(variant.removeprefix("momentum_").replace("_", "."))
        case _:
            raise ValueError(f"unknown variant {variant!r}; choose {', '.join(VARIANTS)}")
    return config
