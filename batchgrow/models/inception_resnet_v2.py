"""Inception-ResNet-V2 (Szegedy et al. 2016, arXiv 1602.07261) for 299x299 images.

The variant is the published code's (TF-Slim `inception_resnet_v2`; the same in Keras and timm),
which has 10, 20 and 10 residual blocks, without its auxiliary head. Batch norm has a scale, as in
timm (55,843,464 parameters for 1000 classes); TF-Slim and Keras fix it to one (55,813,192).
As in TF-Slim, training drops a fifth of the pooled features (Keras and timm drop none).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.convolution import Conv
from batchgrow.models.ghost_batch_norm import GhostBatchNorm

# A branch is a chain of convolutions (channels, kernel height, kernel width), each with BN-ReLU.
Branch = tuple[tuple[int, int, int], ...]

MIXED_5B = (
    ((96, 1, 1),),
    ((48, 1, 1), (64, 5, 5)),
    ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
)
BLOCK_35 = (
    ((32, 1, 1),),
    ((32, 1, 1), (32, 3, 3)),
    ((32, 1, 1), (48, 3, 3), (64, 3, 3)),
)
MIXED_6A = (
    ((384, 3, 3),),
    ((256, 1, 1), (256, 3, 3), (384, 3, 3)),
)
BLOCK_17 = (
    ((192, 1, 1),),
    ((128, 1, 1), (160, 1, 7), (192, 7, 1)),
)
MIXED_7A = (
    ((256, 1, 1), (384, 3, 3)),
    ((256, 1, 1), (288, 3, 3)),
    ((256, 1, 1), (288, 3, 3), (320, 3, 3)),
)
BLOCK_8 = (
    ((192, 1, 1),),
    ((192, 1, 1), (224, 1, 3), (256, 3, 1)),
)

max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


class InceptionResNetV2(nn.Module):
    """Stem, 10 blocks at 35x35, 20 at 17x17, 10 at 8x8, with reductions between; one dense layer.

    Kernels start Glorot-uniform, as in TF-Slim. Layers are numbered in the order of timm's
    `state_dict`, so its weights can be copied one after another.

    Attributes: as in `ResNet`; `num_blocks`, the residual blocks at each of the three resolutions
    (at least one each), of which the last has no ReLU; `dropout`, the probability that a pooled
    feature is dropped in training. TF-Slim keeps 0.8 of them.
    """

    num_classes: int
    ghost_batch_size: int
    axis_name: str | None = None
    dtype: Any = jnp.float32
    ghost_momentum: float = 0.9
    num_blocks: tuple[int, int, int] = (10, 20, 10)
    dropout: float = 0.2

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images `(batch, height, width, 3)` to float32 logits `(batch, num_classes)`.

        The sides of the images are at least 75.
        """
        conv = partial(Conv, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        norm = partial(
            GhostBatchNorm,
            ghost_batch_size=self.ghost_batch_size,
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.ghost_momentum,
            epsilon=1e-3,
            dtype=self.dtype,
        )

        def unit(x: jax.Array, channels: int, *kernel_size: int, **kwargs: Any) -> jax.Array:
            return nn.relu(norm()(conv(channels, kernel_size, use_bias=False, **kwargs)(x)))

        def chain(x: jax.Array, branch: Branch) -> jax.Array:
            for channels, height, width in branch:
                x = unit(x, channels, height, width)
            return x

        def residual(x: jax.Array, branches: tuple[Branch, ...], scale: float) -> jax.Array:
            y = jnp.concatenate([chain(x, branch) for branch in branches], axis=-1)
            return x + scale * conv(x.shape[-1], (1, 1))(y)

        def reduction(x: jax.Array, branches: tuple[Branch, ...]) -> jax.Array:
            """The last convolution of each branch has stride 2."""
            ends = [
                unit(chain(x, branch[:-1]), *branch[-1], strides=2, padding="VALID")
                for branch in branches
            ]
            return jnp.concatenate([*ends, max_pool(x)], axis=-1)

        x = unit(images.astype(self.dtype), 32, 3, 3, strides=2, padding="VALID")
        x = unit(x, 32, 3, 3, padding="VALID")
        x = max_pool(unit(x, 64, 3, 3))
        x = unit(x, 80, 1, 1)
        x = max_pool(unit(x, 192, 3, 3, padding="VALID"))

        pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        branches = [chain(x, branch) for branch in MIXED_5B]
        x = jnp.concatenate([*branches, unit(pooled, 64, 1, 1)], axis=-1)
        for _ in range(self.num_blocks[0]):
            x = nn.relu(residual(x, BLOCK_35, scale=0.17))
        x = reduction(x, MIXED_6A)
        for _ in range(self.num_blocks[1]):
            x = nn.relu(residual(x, BLOCK_17, scale=0.10))
        x = reduction(x, MIXED_7A)
        for _ in range(self.num_blocks[2] - 1):
            x = nn.relu(residual(x, BLOCK_8, scale=0.20))
        x = residual(x, BLOCK_8, scale=1.0)

        x = unit(x, 1536, 1, 1).astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        start = nn.initializers.xavier_uniform()
        return nn.Dense(self.num_classes, kernel_init=start, name="classifier")(x)
