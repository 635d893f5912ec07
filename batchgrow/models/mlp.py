"""A multilayer perceptron."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers with ReLU, each followed by dropout, then one dense layer without ReLU.

    Attributes:
      features: units of each hidden layer.
      outputs: units of the last layer.
      dropout: probability that a hidden unit is dropped in training.
      dtype: the dtype of the hidden layers; parameters and the last layer are float32.
    """

    features: Sequence[int]
    outputs: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 `(examples, outputs)` for inputs `(examples, ...)`, which it flattens."""
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        for features in self.features:
            x = nn.relu(nn.Dense(features, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, name="output")(x.astype(jnp.float32))
