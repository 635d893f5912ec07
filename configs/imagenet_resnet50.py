"""ImageNet with ResNet-50: Smith et al. (2018), Section 5.4, after Goyal et al. (2017).

    python -m experiments.imagenet --config=configs/imagenet_resnet50.py:VARIANT --workdir=DIR

Updates of 90 epochs:

    decaying_lr       batch 8192, the learning rate falls by 10 at epochs 30, 60, 80     14,075
    increasing_batch  8192, from epoch 30 on 16384 (paper: 76.1% in under 30 minutes)     9,384
    large_batch       16384 and twice the learning rate throughout                        7,038

    modern            LARS, batch 32768, 60 epochs (MLPerf v2.0's values)                 2,346
    smoke             ResNet-18 at 64x64 on `experiments.make_fake_imagenet`, on two CPU cores
"""

from batchgrow.config import ConfigDict
from configs import base

VARIANTS = ("decaying_lr", "increasing_batch", "large_batch", "modern", "smoke")


def get_config(variant: str = "decaying_lr") -> ConfigDict:
    """Goyal's recipe at 8192 with the plan of one of `VARIANTS`."""
    config = goyal()
    config.variant = variant
    match variant:
        case "decaying_lr":
            config.plan.name = "decay"
        case "increasing_batch":
            config.plan.name = "grow"
            config.plan.max_batch_size = 16384
        case "large_batch":
            config.plan.name = "grow"
            config.plan.max_batch_size = 16384
            config.plan.initial_multiple = 2.0
        case "modern":
            lars(config)
        case "smoke":
            smoke(config)
        case _:
            raise ValueError(f"unknown variant {variant!r}; choose {', '.join(VARIANTS)}")
    return config


def imagenet() -> ConfigDict:
    """The data set, without an image size."""
    config = base.get_config()
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.num_train_examples = 1_281_167
    config.data.num_test_examples = 50_000
    config.task.mean = (123.675, 116.28, 103.53)
    config.task.std = (58.395, 57.12, 57.375)
    config.model.num_classes = 1000
    config.model.dtype = "bfloat16"
    config.run.input = "workers"
    config.run.num_workers = 16
    config.run.eval_batch_size = 4096
    config.run.checkpoint_every_epochs = 2.0
    config.run.plan_warnings = False  # short segments are meant; experiments.plan warns
    config.log_every_epochs = 0.25
    return config


def goyal() -> ConfigDict:
    """ResNet-50, 90 epochs, 5 of warm-up; L2 spares batch norm and biases."""
    config = imagenet()
    config.name = "imagenet_resnet50"
    config.data.image_size = 224
    config.model.name = "resnet"
    config.model.depth = 50
    config.ghost_batch_size = 32
    config.optimizer.name = "nesterov"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_on = "kernels"
    config.recipe.num_epochs = 90.0
    config.recipe.batch_size = 8192
    config.recipe.learning_rate = 3.2  # 0.1 per 256 examples
    config.recipe.boundaries_epochs = (30.0, 60.0, 80.0)
    config.recipe.factor = 0.1
    config.recipe.warmup_epochs = 5.0
    config.recipe.warmup_learning_rate = 0.1
    return config


def lars(config: ConfigDict) -> None:
    """Google's MLPerf v2.0 values for a batch of 32768; its label smoothing is unverified."""
    config.ghost_batch_size = 64
    config.task.label_smoothing = 0.1
    config.optimizer.name = "lars"
    config.recipe.momentum = 0.9321
    config.recipe.batch_size = 32768
    config.recipe.curve = "polynomial"
    config.recipe.power = 2.0
    # 27.5 when warm-up ends: MLPerf's polynomial starts there, this one at epoch 0.
    config.recipe.learning_rate = 27.5 * (60.0 / 44.0) ** 2
    config.recipe.num_epochs = 60.0
    config.recipe.warmup_epochs = 16.0
    config.recipe.warmup_learning_rate = 0.0
    config.plan.name = "decay"


def smoke(config: ConfigDict) -> None:
    """Two growths, 64 -> 128 -> 256, on 1,280 + 200 generated pictures of ten classes."""
    config.data.num_train_examples = 1280
    config.data.num_test_examples = 200
    config.data.image_size = 64
    config.model.depth = 18
    config.model.dtype = "float32"
    config.evaluate_every_epochs = 1.5
    config.recipe.num_epochs = 3.0
    config.recipe.batch_size = 64
    config.recipe.learning_rate = 0.05
    config.recipe.boundaries_epochs = (1.4, 2.2)
    config.recipe.factor = 0.5
    config.recipe.warmup_epochs = 0.5
    config.recipe.warmup_learning_rate = 0.01
    config.plan.name = "grow"
    config.plan.max_batch_size = 256
    config.run.num_workers = 1
    config.run.eval_batch_size = 100
