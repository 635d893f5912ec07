"""MNIST with fully connected networks.

    python -m experiments.train --config=configs/mnist.py --workdir=runs/mnist

    mlp    one hidden layer of 800 ReLUs, as Smith & Le (2017), Sec. 5; no batch norm, so that a
           batch may hold one example
    f1     five hidden layers of 512 ReLUs with batch norm: F1 of Keskar et al. (2017), by Adam

Fields set the rest: --config.model.features=(100,) for another network, and
--config.data.train_split=train[:10000] --config.data.num_train_examples=None for a part of the
training set. The learning rate is constant.
"""

from batchgrow.config import ConfigDict
from configs import base

VARIANTS = ("mlp", "f1")


def get_config(variant: str = "mlp") -> ConfigDict:
    """The data, and one of `VARIANTS`."""
    config = base.get_config()
    config.name = "mnist"
    config.variant = variant

    config.data.name = "mnist"
    config.data.num_train_examples = 60_000
    config.data.num_test_examples = 10_000
    config.task.num_classes = 10
    config.task.mean = (33.3,)
    config.task.std = (78.6,)
    config.model.outputs = 10

    config.recipe.curve = "constant"
    config.recipe.num_epochs = 10.0
    config.recipe.momentum = 0.9
    config.run.eval_batch_size = 2000
    config.run.checkpoint_every_epochs = 5.0

    match variant:
        case "mlp":
            config.model.name = "mlp"
            config.model.features = (800,)
            config.recipe.batch_size = 64
            config.recipe.learning_rate = 0.05
        case "f1":
            config.model.name = "experiments.lab.networks:NormedMLP"
            config.model.features = (512,) * 5
            config.ghost_batch_size = 256
            config.optimizer.name = "adam"
            config.recipe.batch_size = 256
            config.recipe.learning_rate = 0.001
        case _:
            raise ValueError(f"unknown variant {variant!r}; choose {', '.join(VARIANTS)}")
    return config
