"""A small perceptron on scikit-learn's diabetes set: regression in seconds, with dropout.

    python -m experiments.train --config=configs/diabetes.py:VARIANT --workdir=DIR

    decaying_lr        batch 8, the learning rate is divided by 5 three times     1,324 updates
    increasing_batch   the batch grows 8 -> 40 -> 200, then the rate falls          497 updates

R^2 of least squares is 0.35 on the 89 test patients.
"""

from ml_collections import ConfigDict

from batchgrow import config as library
from configs import base

VARIANTS = ("decaying_lr", "increasing_batch")


def get_config(variant: str = "decaying_lr") -> library.ConfigDict:
    """The recipe with the plan of one of `VARIANTS`."""
    config: library.ConfigDict = base.get_config()
    config.name = "diabetes"
    config.variant = variant

    config.data.name = "diabetes"
    config.data.num_train_examples = 353
    # Mean and standard deviation of y, which ranges from 25 to 346.
    config.task = ConfigDict({"name": "regression", "mean": 152.0, "std": 77.0})

    config.model.name = "mlp"
    config.model.features = (32, 32)
    config.model.outputs = 1
    config.model.dropout = 0.2

    config.optimizer.name = "momentum"
    config.optimizer.weight_decay = 1e-2
    config.recipe.num_epochs = 30.0
    config.recipe.batch_size = 8
    config.recipe.momentum = 0.9
    config.recipe.curve = "step"
    config.recipe.learning_rate = 0.01
    config.recipe.boundaries_epochs = (9.0, 18.0, 24.0)
    config.recipe.factor = 0.2
    config.run.checkpoint_every_epochs = 10.0
    config.run.plan_warnings = False  # short segments are meant; experiments.plan warns

    match variant:
        case "decaying_lr":
            config.plan.name = "decay"
        case "increasing_batch":
            config.plan.name = "grow"
            config.plan.max_batch_size = 200
        case _:
            raise ValueError(f"unknown variant {variant!r}; choose {', '.join(VARIANTS)}")
    return config
