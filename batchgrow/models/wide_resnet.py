"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.branches import Branches
from batchgrow.models.convolution import Conv
from batchgrow.models.fixed_classifier import classifier
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
      dropout: the probability that an input of the second convolution of a block becomes 0, the
        paper's option; it uses 0.3 on CIFAR-10 and 0.4 on SVHN.
      classifier_dropout: the probability that an input of the last layer becomes 0.
      branches: random factors of the blocks: "plain" for none, "stochastic_depth", "shake" or
        "shake_drop" (see `models.branches`).
      branch_level: what shares a factor: "batch", "image", "channel" or "pixel".
      last_probability: P_L, the probability of the last block to be left as it is.
      branch_norm: whether each branch ends in a batch norm of its own, which ShakeDrop needs.
      last_layer: "dense", "hadamard" or "orthonormal" (see `models.fixed_classifier`).
    """

    depth: int
    width: int
    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32
    ghost_momentum: float = 0.9
    stem_strides: int = 1
    dropout: float = 0.0
    classifier_dropout: float = 0.0
    branches: str = "plain"
    branch_level: str = "image"
    last_probability: float = 0.5
    branch_norm: bool = False
    last_layer: str = "dense"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images `(batch, height, width, channels)` to float32 logits `(batch, num_classes)`.

        Raises:
          ValueError: if `depth` is not 6n + 4, or an option is unknown.
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
        num_blocks = (self.depth - 4) // 6
        branches = Branches(
            self.branches,
            3 * num_blocks,
            self.last_probability,
            self.branch_level,
            self.ghost_batch_size,
            self.axis_name,
        )
        dropout = partial(nn.Dropout, deterministic=not train)

        def finish(y: jax.Array, block: int) -> jax.Array:
            if self.branch_norm:
                y = norm()(y)
            return branches.scale(y, block, train=train and not self.is_initializing())

        x = conv(16, (3, 3), strides=self.stem_strides, padding=1, name="stem")(
            images.astype(self.dtype)
        )
        for group, channels in enumerate((16, 32, 64)):
            for block in range(num_blocks):
                strides = 2 if group > 0 and block == 0 else 1
                end = partial(finish, block=group * num_blocks + block + 1)
                drop = dropout(self.dropout)
                x = _block(x, channels * self.width, strides, conv, norm, drop, end)
        x = nn.relu(norm()(x)).astype(jnp.float32).mean((1, 2))
        x = dropout(self.classifier_dropout)(x)
        return classifier(self.last_layer, self.num_classes, nn.initializers.lecun_normal())(x)


def _block(
    x: jax.Array, channels: int, strides: int, conv: Any, norm: Any, drop: Any, end: Any
) -> jax.Array:
    """BN-ReLU-conv twice; the first BN-ReLU is shared with the 1x1 shortcut if widths differ.

    Args:
      drop: the dropout between the convolutions.
      end: what is done to the branch before it is added.
    """
    y = nn.relu(norm()(x))
    shortcut = x
    if x.shape[-1] != channels or strides != 1:
        shortcut = conv(channels, (1, 1), strides=strides)(y)
    y = conv(channels, (3, 3), strides=strides, padding=1)(y)
    y = drop(nn.relu(norm()(y)))
    return shortcut + end(conv(channels, (3, 3))(y))
