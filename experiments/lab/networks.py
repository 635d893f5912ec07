"""Networks of the sources that the library does not ship."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models import GhostBatchNorm


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
