"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.convolution import Conv
from batchgrow.models.ghost_batch_norm import GhostBatchNorm

# N(0, sqrt(2 / (k k c_in))), as the authors' code draws convolutions.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class WideResNet(nn.Module):
    """WRN-depth-width: pre-activation, three groups of (depth - 4) / 6 basic blocks.

    WRN-16-4 has 2,748,890 parameters for 10 classes.

    Attributes:
      depth: number of convolutions on the main path; depth = 6n + 4.
      width: widening factor k; the groups have 16k, 32k and 64k channels.
      num_classes: size of the last layer.
      ghost_batch_size: examples that share batch statistics.
      axis_name: the mapped device axis, or None.
      dtype: the dtype of activations and matrix products; parameters stay float32.
      ghost_momentum: the factor of the running statistics per ghost batch (see `GhostBatchNorm`).
      stem_strides: the strides of the first convolution; 2 halves the resolution of all later
        layers. The network is then not a WRN, and needs a quarter of the computation.
    """

    depth: int
    width: int
    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32
    ghost_momentum: float = 0.9
    stem_strides: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images `(batch, height, width, channels)` to float32 logits `(batch, num_classes)`.

        Raises:
          ValueError: if `depth` is not 6n + 4.
        """
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"model.depth {self.depth} must be 6n + 4, such as 10, 16, 22, 28, 40")
        conv = partial(Conv, use_bias=False, kernel_init=he_normal, dtype=self.dtype)
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.ghost_momentum,
            dtype=self.dtype,
        )
        x = conv(16, (3, 3), strides=self.stem_strides, padding=1, name="stem")(
            images.astype(self.dtype)
        )
        for group, channels in enumerate((16, 32, 64)):
            for block in range((self.depth - 4) // 6):
                strides = 2 if group > 0 and block == 0 else 1
                x = _block(x, channels * self.width, strides, conv, norm)
        x = nn.relu(norm()(x)).astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes, name="classifier")(x)


def _block(x: jax.Array, channels: int, strides: int, conv: Any, norm: Any) -> jax.Array:
    """BN-ReLU-conv twice; the first BN-ReLU is shared with the 1x1 shortcut if widths differ."""
    y = nn.relu(norm()(x))
    shortcut = x
    if x.shape[-1] != channels or strides != 1:
        shortcut = conv(channels, (1, 1), strides=strides)(y)
    y = conv(channels, (3, 3), strides=strides, padding=1)(y)
    y = nn.relu(norm()(y))
    return shortcut + conv(channels, (3, 3))(y)
