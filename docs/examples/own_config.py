"""A config of your own: a table in a CSV file, a model, an optimizer and a curve of your own."""

import flax.linen as nn
import optax
from ml_collections import ConfigDict

from configs import base


class Net(nn.Module):
    """`outputs` is read from the data."""

    outputs: int
    width: int

    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.Dense(self.outputs)(nn.gelu(nn.Dense(self.width)(x)))


def heavy_ball(momentum: float, clip_norm: float):
    """Everything but the learning rate, which the plan gives."""
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.trace(decay=momentum))


def halves(learning_rate: float, num_epochs: float):
    """The learning rate as a function of the epoch: it is halved four times."""
    return lambda epoch: learning_rate * 0.5 ** min(4, int(5 * epoch / num_epochs))


def get_config(path: str = "houses.csv"):
    config = base.get_config()
    config.name = "houses"
    config.data.name = f"csv:{path}"
    config.data.target = "price"
    config.data.test_share = 0.2
    config.task = ConfigDict({"name": "regression"})
    config.model.name = "own_config:Net"
    config.model.width = 32
    config.optimizer.name = "own_config:heavy_ball"
    config.optimizer.clip_norm = 10.0
    config.recipe.num_epochs = 20.0
    config.recipe.batch_size = 8
    config.recipe.curve = "own_config:halves"
    config.recipe.learning_rate = 0.02
    config.plan.name = "grow"
    config.plan.exponent = 1.0  # the learning rate is proportional to the batch size, as for SGD
    config.run.checkpoint_every_epochs = 20.0
    return config
