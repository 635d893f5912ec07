"""Networks of the sources that the library does not ship."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models import GhostBatchNorm
from batchgrow.models.socnn import ConvOverTime


class NormedMLP(nn.Module):
    """Dense layers, each with batch norm and ReLU; then one dense layer.

    With `features=(512,) * 5` this is F1 of Keskar et al. (2017), Appendix B.

    Attributes:
      features: units of each hidden layer.
      outputs: units of the last layer.
      ghost_batch_size: consecutive examples that share batch statistics.
      axis_name: the mapped device axis, or None.
      dtype: the dtype of the hidden layers; parameters and the last layer are float32.
    """

    features: Sequence[int]
    outputs: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 `(examples, outputs)` for inputs `(examples, ...)`, which it flattens."""
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        for features in self.features:
            x = nn.relu(norm()(nn.Dense(features, use_bias=False, dtype=self.dtype)(x)))
        return nn.Dense(self.outputs, name="output")(x.astype(jnp.float32))


class SeriesCNN(nn.Module):
    """Convolutions over time with batch norm and leaky ReLU; every second one halves the rows.

    Attributes:
      outputs: the number of targets.
      ghost_batch_size: consecutive examples that share batch statistics.
      axis_name: the mapped device axis, or None.
      channels: outputs of each convolution.
      layers: how many there are, of 3 rows each.
    """

    outputs: int
    ghost_batch_size: int
    axis_name: str | None = None
    channels: int = 16
    layers: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 `(examples, outputs)` for x `(examples, rows, channels)`."""
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
        )
        for layer in range(self.layers):
            x = nn.leaky_relu(norm()(ConvOverTime(self.channels, 3)(x)), 0.1)
            if layer % 2:
                x = nn.max_pool(x, (2,), (2,))
        return nn.Dense(self.outputs, name="output")(x.reshape(x.shape[0], -1))


class SeriesLSTM(nn.Module):
    """One LSTM; a dense layer reads its last state.

    Attributes:
      outputs: the number of targets.
      units: the size of the state.
    """

    outputs: int
    units: int = 27

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 `(examples, outputs)` for x `(examples, rows, channels)`."""
        del train  # There is no batch norm.
        states: Any = nn.RNN(nn.OptimizedLSTMCell(self.units))(x)
        return nn.Dense(self.outputs, name="output")(states[:, -1])
