"""The configs that the experiments of the laboratory start from."""

from typing import Any

from ml_collections import ConfigDict

from configs import cifar10, mnist


def small_mnist(num_examples: int = 10_000, features: tuple[int, ...] = (128,)) -> Any:
    """MNIST's first examples, one small network without batch norm, plain SGD.

    Nothing is evaluated before the end, and the last row has the training metrics of the last
    epoch.
    """
    config = mnist.get_config("mlp")
    part_of_mnist(config, num_examples)
    config.model.features = features
    config.optimizer.name = "sgd"
    only_at_the_end(config)
    return config


def small_f1(num_examples: int) -> Any:
    """MNIST's first examples and F1 of Keskar et al. (2017): five layers of 512 with batch norm."""
    config = mnist.get_config("f1")
    part_of_mnist(config, num_examples)
    only_at_the_end(config)
    return config


def small_cifar10(num_examples: int) -> Any:
    """CIFAR-10's first examples, two convolutions with ghost batch norm, a constant rate.

    The rest is as in `configs/cifar10.py:decaying_lr,small`.
    """
    config = cifar10.get_config("decaying_lr,small")
    config.data.train_split = f"train[:{num_examples}]"
    config.data.num_train_examples = num_examples
    config.model = ConfigDict({"name": "conv_net", "channels": 8, "num_classes": 10})
    config.recipe.curve = "constant"
    only_at_the_end(config)
    return config


def part_of_mnist(config: Any, num_examples: int) -> None:
    """Trains on the first examples only."""
    config.data.train_split = f"train[:{num_examples}]"
    config.data.num_train_examples = num_examples


def only_at_the_end(config: Any) -> None:
    """Evaluates and saves at the end only."""
    config.log_every_epochs = 1.0
    config.evaluate_every_epochs = config.run.checkpoint_every_epochs = 1e6
    config.run.keep_checkpoints = 1


def updates_of(config: Any, num_updates: int, batch_size: int) -> float:
    """How many epochs this many updates are."""
    return num_updates * batch_size / config.data.num_train_examples
