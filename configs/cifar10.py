"""CIFAR-10 with WRN-16-4: Smith et al. (2018), Sections 5.1 and 5.2.

    python -m experiments.cifar10 --config=configs/cifar10.py:VARIANT --workdir=DIR

Sec. 5.1, for any of --config.optimizer.name=momentum|nesterov|sgd|adam; updates of 200 epochs:

    decaying_lr           batch 128, the learning rate falls by 5 three times       78,125
    hybrid                the batch grows once, then the learning rate falls        34,375
    increasing_batch      the batch grows by 5 three times                          28,875

Sec. 5.2, batches up to 5120:

    original              as decaying_lr                                            78,125
    increasing_batch_5120 as increasing_batch, capped                               29,141
    increased_lr          as increasing_batch_5120, from 5 times the batch           6,407
                          and the learning rate on
    increased_momentum    as increased_lr, with momentum 0.98 and again 5 times      2,305
                          the batch

`VARIANT,small` has the same plan in small: a WRN-10-1 at half the resolution and a quarter of all
batches and learning rates, for 10 epochs; two CPU cores train it.

`VARIANT,short` has the paper's batches and learning rates and all images at their full resolution,
but 50 epochs of a WRN-10-1. `VARIANT,tenth` is the same with 20 epochs.
"""

from batchgrow.config import ConfigDict
from configs import base

VARIANTS = (
    "decaying_lr",
    "hybrid",
    "increasing_batch",
    "original",
    "increasing_batch_5120",
    "increased_lr",
    "increased_momentum",
)


def get_config(variant: str = "decaying_lr") -> ConfigDict:
    """The WRN recipe (Zagoruyko & Komodakis 2016) with the plan of one of `VARIANTS`."""
    name, _, size = variant.partition(",")
    config = wide_resnet()
    config.variant = variant
    match name:
        case "decaying_lr" | "original":
            config.plan.name = "decay"
        case "hybrid":
            config.plan.name = "hybrid"
        case "increasing_batch":
            config.plan.name = "grow"
            config.plan.max_batch_size = 16_000  # beyond N/10
        case "increasing_batch_5120":
            config.plan.name = "grow"
            config.plan.max_batch_size = 5120
        case "increased_lr":
            config.plan.name = "grow"
            config.plan.max_batch_size = 5120
            config.plan.initial_multiple = 5.0
        case "increased_momentum":
            config.plan.name = "grow"
            config.plan.max_batch_size = 5120
            config.plan.initial_multiple = 5.0
            config.plan.momentum = 0.98
        case _:
            raise ValueError(f"unknown variant {name!r}; choose {', '.join(VARIANTS)}")
    match size:
        case "small":
            shrink(config)
        case "tenth":
            shorten(config, 20.0)
        case "short":
            shorten(config, 50.0)
        case "":
            pass
        case _:
            sizes = "small, short, tenth or nothing"
            raise ValueError(f"variant {variant!r}: after the comma stands {sizes}")
    return config


def wide_resnet() -> ConfigDict:
    """The recipe: WRN-16-4, 200 epochs, preprocessing as in the authors' repository."""
    config = base.get_config()
    config.name = "cifar10"

    config.data.name = "cifar10"
    config.data.num_train_examples = 50_000
    config.data.num_test_examples = 10_000
    config.task.augment = "crop_flip"
    config.task.mean = (125.3, 123.0, 113.9)
    config.task.std = (63.0, 62.1, 66.7)

    config.model.name = "wide_resnet"
    config.model.depth = 16
    config.model.width = 4
    config.model.stem_strides = 1
    config.model.num_classes = 10
    config.model.dtype = "bfloat16"
    config.ghost_batch_size = 128

    config.optimizer.weight_decay = 5e-4

    config.recipe.num_epochs = 200.0
    config.recipe.batch_size = 128
    # The paper's text names 0.1; Adam's (its schedule divided by 100) is from memory, unverified.
    config.recipe.learning_rates = {"momentum": 0.1, "nesterov": 0.1, "sgd": 0.1, "adam": 0.001}
    config.recipe.boundaries_epochs = (60.0, 120.0, 160.0)
    config.recipe.factor = 0.2
    config.plan.exponent = 1.0  # the paper's, for every optimizer

    config.evaluate_every_epochs = 2.0
    config.run.eval_batch_size = 2000
    config.run.plan_warnings = False  # short segments are meant; experiments.plan warns
    config.run.checkpoint_every_epochs = 20.0
    return config


def shrink(config: ConfigDict) -> None:
    """The same plan for two CPU cores: a small network, the steps in the same proportions.

    Batches, and with them learning rates, are a quarter, so that the noise scale is the paper's
    and the largest batches still make some updates in a phase of two epochs.
    """
    config.model.depth = 10
    config.model.width = 1
    config.model.stem_strides = 2
    config.model.dtype = "float32"
    config.ghost_batch_size = 32
    config.recipe.batch_size = 32
    for optimizer, rate in list(config.recipe.learning_rates.items()):
        config.recipe.learning_rates[optimizer] = rate / 4
    if config.plan.max_batch_size is not None:
        config.plan.max_batch_size //= 4
    config.recipe.num_epochs = 10.0
    config.recipe.boundaries_epochs = (3.0, 6.0, 8.0)
    config.log_every_epochs = 0.5
    config.evaluate_every_epochs = 0.5
    config.run.checkpoint_every_epochs = 2.0


def shorten(config: ConfigDict, num_epochs: float) -> None:
    """The paper's batches, rates and proportions, for fewer epochs of a small network."""
    config.model.depth = 10
    config.model.width = 1
    config.recipe.num_epochs = num_epochs
    config.recipe.boundaries_epochs = tuple(num_epochs * part for part in (0.3, 0.6, 0.8))
    config.log_every_epochs = 0.5
    config.run.checkpoint_every_epochs = 1.0
