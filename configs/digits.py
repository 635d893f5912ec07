"""Three plans for one recipe on scikit-learn's 8x8 digits.

Smith et al. (2018), Sec. 5.1, in small: the recipe divides the learning rate by 5 three times.

    python -m experiments.digits

The batch of `increasing_batch` grows 16 -> 80 -> 400; the last division by 5 is the rate's.
"""

from batchgrow.config import ConfigDict
from configs import base

VARIANTS = ("decaying_lr", "hybrid", "increasing_batch")


def get_config(variant: str = "decaying_lr") -> ConfigDict:
    """The recipe with the plan of one of `VARIANTS`."""
    config = base.get_config()
    config.name = "digits"
    config.variant = variant

    config.data.name = "digits"
    config.data.num_train_examples = 1437
    config.data.num_test_examples = 360
    config.task.mean = (73.0,)
    config.task.std = (90.0,)

    config.model.name = "conv_net"
    config.model.channels = 4
    config.model.num_classes = 10
    config.ghost_batch_size = 16

    config.optimizer.weight_decay = 5e-4
    config.recipe.num_epochs = 30.0
    config.recipe.batch_size = 16
    config.recipe.learning_rate = 0.2
    config.recipe.boundaries_epochs = (9.0, 18.0, 24.0)  # 60, 120, 160 of 200 in the paper
    config.recipe.factor = 0.2
    config.run.checkpoint_every_epochs = 10.0
    config.run.plan_warnings = False  # short segments are meant; experiments.plan warns
    config.noise.share = 0.05

    match variant:
        case "decaying_lr":
            config.plan.name = "decay"
        case "hybrid":
            config.plan.name = "hybrid"
        case "increasing_batch":
            config.plan.name = "grow"
            config.plan.max_batch_size = 400
        case _:
            raise ValueError(f"unknown variant {variant!r}; choose {', '.join(VARIANTS)}")
    return config
