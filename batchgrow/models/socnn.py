"""The significance-offset network for series (Binkowski, Marti & Donnat 2018)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.convolution import Conv
from batchgrow.models.ghost_batch_norm import GhostBatchNorm


class SOCNN(nn.Module):
    """A weighted mean of past values, each with a learned offset (Section 3 of the paper).

    y_n = sum over m of W_m * (off(x_{n-m}) + x_{n-m}^I) * softmax over m of S(x)

    x^I are the past values of the targets: the first `outputs` channels. S is a stack of
    convolutions over time, off a stack of dense layers for each row alone. All layers have batch
    norm and a leaky ReLU of slope 0.1, also the last ones, as in the authors' program. W starts at
    1, so that the first predictions are weighted means.

    Attributes:
      outputs: the number of targets.
      ghost_batch_size: consecutive examples that share batch statistics.
      axis_name: the mapped device axis, or None.
      channels: outputs of each hidden layer.
      significance_layers: convolutions of S.
      offset_layers: dense layers of off.
      kernels: rows that the convolutions of S see, in turn.
    """

    outputs: int
    ghost_batch_size: int
    axis_name: str | None = None
    channels: int = 16
    significance_layers: int = 10
    offset_layers: int = 2
    kernels: Sequence[int] = (1, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns predictions float32 `(examples, outputs)`, and off + x^I of each row.

        Args:
          x: `(examples, rows, channels)`, the latest row last.
          train: whether batch statistics are those of the batch.

        Raises:
          ValueError: if x has fewer channels than there are outputs.
        """
        if x.ndim != 3 or x.shape[2] < self.outputs:
            raise ValueError(
                f"an example has shape {x.shape[1:]}; SOCNN needs (rows, channels) with model."
                f"outputs {self.outputs} channels or more, the past values of the targets first"
            )
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
        )

        def stack(x: jax.Array, name: str, num_layers: int, kernels: Sequence[int]) -> jax.Array:
            for layer in range(num_layers):
                features = self.outputs if layer == num_layers - 1 else self.channels
                kernel = kernels[layer % len(kernels)]
                x = ConvOverTime(features, kernel, name=f"{name}{layer}")(x)
                x = nn.leaky_relu(norm(name=f"{name}{layer}_norm")(x), 0.1)
            return x

        offset = stack(x, "offset", self.offset_layers, (1,))
        significance = stack(x, "significance", self.significance_layers, self.kernels)
        values = offset + x[..., : self.outputs]
        weights = self.param("weights", nn.initializers.ones, (x.shape[1], self.outputs))
        shares = jax.nn.softmax(significance.astype(jnp.float32), axis=1)
        return (weights[None] * values * shares).sum(1), values


class ConvOverTime(nn.Module):
    """A convolution over time without bias, as many rows out as in.

    Attributes:
      features: channels of the output.
      kernel: rows that a convolution sees.
    """

    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `(examples, rows, features)` for x `(examples, rows, channels)`."""
        if self.kernel == 1:
            return nn.Dense(self.features, use_bias=False)(x)
        return Conv(self.features, (self.kernel, 1), use_bias=False)(x[:, :, None])[:, :, 0]
