"""Residual networks for ImageNet (He et al. 2016, arXiv 1512.03385).

The variant is that of fb.resnet.torch, also called v1.5, and of Goyal et al. (2017): a bottleneck
strides in its 3x3 convolution, not in its first 1x1. Initialised as in Goyal et al. (Sec. 5.1).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.branches import Branches
from batchgrow.models.convolution import Conv
from batchgrow.models.fixed_classifier import classifier
from batchgrow.models.ghost_batch_norm import GhostBatchNorm

# N(0, sqrt(2 / (k k c_out))): He et al. (2015) with the fan out, as fb.resnet.torch draws it.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """ResNet-depth: a 7x7 stem, four stages of 64, 128, 256 and 512 channels, one dense layer.

    Parameters for 1000 classes: ResNet-18 11,689,512; -50 25,557,032; -101 44,549,160. Padding is
    explicit and layers are numbered in the order of torchvision's `state_dict`, so its weights can
    be copied one after another.

    Attributes:
      depth: 18 or 34 (basic blocks); 50, 101 or 152 (bottlenecks).
      num_classes: size of the last layer.
      ghost_batch_size: examples that share batch statistics.
      axis_name: the mapped device axis, or None.
      dtype: the dtype of activations and convolutions; parameters and the last layer are
        float32.
      ghost_momentum: the factor of the running statistics per ghost batch (see `GhostBatchNorm`).
      classifier_dropout: the probability that an input of the last layer becomes 0.
      branches: random factors of the blocks: "plain" for none, "stochastic_depth", "shake" or
        "shake_drop" (see `models.branches`).
      branch_level: what shares a factor: "batch", "image", "channel" or "pixel".
      last_probability: P_L, the probability of the last block to be left as it is.
      last_layer: "dense", "hadamard" or "orthonormal" (see `models.fixed_classifier`).
    """

    depth: int
    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32
    ghost_momentum: float = 0.9
    classifier_dropout: float = 0.0
    branches: str = "plain"
    branch_level: str = "image"
    last_probability: float = 0.5
    last_layer: str = "dense"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images `(batch, height, width, 3)` to float32 logits `(batch, num_classes)`.

        Raises:
          ValueError: if no network of this depth was published, or an option is unknown.
        """
        if self.depth not in _STAGES:
            known = ", ".join(map(str, sorted(_STAGES)))
            raise ValueError(f"unknown model.depth {self.depth}; choose {known}")
        block, stages = _STAGES[self.depth]
        conv = partial(Conv, use_bias=False, kernel_init=he_normal, dtype=self.dtype)
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.ghost_momentum,
            dtype=self.dtype,
        )
        branches = Branches(
            self.branches,
            sum(stages),
            self.last_probability,
            self.branch_level,
            self.ghost_batch_size,
            self.axis_name,
        )
        scale = partial(branches.scale, train=train and not self.is_initializing())
        x = conv(64, (7, 7), strides=2, padding=3)(images.astype(self.dtype))
        x = nn.relu(norm()(x))
        padding: Any = ((1, 1), (1, 1))  # flax takes pairs, though its annotation says `str`
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for stage, num_blocks in enumerate(stages):
            for index in range(num_blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                end = partial(scale, block=sum(stages[:stage]) + index + 1)
                x = block(x, 64 * 2**stage, strides, conv, norm, end)
        x = x.astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.classifier_dropout, deterministic=not train)(x)
        return classifier(self.last_layer, self.num_classes, nn.initializers.normal(0.01))(x)


def _basic_block(
    x: jax.Array, channels: int, strides: int, conv: Any, norm: Any, end: Any
) -> jax.Array:
    """3x3, 3x3."""
    y = nn.relu(norm()(conv(channels, (3, 3), strides=strides, padding=1)(x)))
    y = conv(channels, (3, 3), padding=1)(y)
    return _add_shortcut(x, y, strides, conv, norm, end)


def _bottleneck(
    x: jax.Array, channels: int, strides: int, conv: Any, norm: Any, end: Any
) -> jax.Array:
    """1x1, 3x3, 1x1 with four times the channels."""
    y = nn.relu(norm()(conv(channels, (1, 1))(x)))
    y = nn.relu(norm()(conv(channels, (3, 3), strides=strides, padding=1)(y)))
    y = conv(4 * channels, (1, 1))(y)
    return _add_shortcut(x, y, strides, conv, norm, end)


def _add_shortcut(
    x: jax.Array, y: jax.Array, strides: int, conv: Any, norm: Any, end: Any
) -> jax.Array:
    """relu(end(norm(y)) + x), x projected by a 1x1 convolution where the shapes differ.

    The scale of norm(y) starts at zero, so that each block starts as the identity.
    """
    y = end(norm(scale_init=nn.initializers.zeros)(y))
    if x.shape != y.shape:
        x = norm()(conv(y.shape[-1], (1, 1), strides=strides)(x))
    return nn.relu(x + y)


# Depth: (block, blocks in each stage). He et al. 2016, Table 1.
_STAGES = {
    18: (_basic_block, (2, 2, 2, 2)),
    34: (_basic_block, (3, 4, 6, 3)),
    50: (_bottleneck, (3, 4, 6, 3)),
    101: (_bottleneck, (3, 4, 23, 3)),
    152: (_bottleneck, (3, 8, 36, 3)),
}
