"""A small convolutional network for 8x8 and 28x28 digits."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.convolution import Conv
from batchgrow.models.ghost_batch_norm import GhostBatchNorm


class ConvNet(nn.Module):
    """Two 3x3 convolutions, the second with stride 2, each with BN-ReLU; then one dense layer.

    Attributes: as in `WideResNet`; `channels` of the first convolution, the second has twice those.
    """

    channels: int
    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32
    ghost_momentum: float = 0.9

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images `(batch, height, width, channels)` to float32 logits `(batch, num_classes)`."""
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.ghost_momentum,
            dtype=self.dtype,
        )
        x = images.astype(self.dtype)
        x = nn.relu(norm()(conv(self.channels, (3, 3))(x)))
        x = nn.relu(norm()(conv(2 * self.channels, (3, 3), strides=2)(x)))
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return nn.Dense(self.num_classes, name="classifier")(x)
