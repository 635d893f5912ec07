"""Residual branches with random factors: stochastic depth, single-branch Shake, ShakeDrop.

In training a block x + F(x) becomes x + f F(x), and the gradient that reaches F is multiplied by f'
instead of f. With b Bernoulli, a and c uniform, all independent:

    stochastic_depth   f = b             f' = f                Huang et al. 2016, arXiv 1603.09382
    shake              f = a             f' = c                one branch of Shake-Shake, Gastaldi
                                                               2017, arXiv 1705.07485
    shake_drop         f = b + a - b a   f' = b + c - b c      Yamada et al. 2018, arXiv 1802.02375

P(b = 1) = 1 - l / L (1 - P_L) in block l of L: the linear decay of Huang et al., whose P_L is 0.5.
a is in [0, 1] for shake and in [-1, 1] for shake_drop; c is in [0, 1]. Evaluation multiplies F(x)
by the mean of f, which is P(b = 1), 1/2 and P(b = 1).

All are drawn from the keys of the examples (see `models.dropout`), so a run has the same factors on
any devices, with any micro-batches, and after a resume.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from batchgrow.models.dropout import example_keys
from batchgrow.models.ghost_batch_norm import devices_per_ghost, groups_of_devices

KINDS = ("plain", "stochastic_depth", "shake", "shake_drop")
LEVELS = ("batch", "image", "channel", "pixel")


@dataclass(frozen=True)
class Branches:
    """The random factors of the residual branches of one network.

    Attributes:
      kind: one of `KINDS`; "plain" changes nothing.
      num_blocks: L, the number of residual blocks.
      last_probability: P_L, the probability of b = 1 in the last block.
      level: what shares a and c: "image", each channel of an image, or each pixel of a channel; b
        is drawn for each image. "batch" draws all three once for each ghost batch. As published it
        draws once for each batch, which would then be another method after a growth.
      ghost_batch_size: the examples that share factors at the level "batch".
      axis_name: the mapped device axis, or None.

    Raises:
      ValueError: for an unknown kind or level, or a probability out of 0..1.
    """

    kind: str
    num_blocks: int
    last_probability: float
    level: str
    ghost_batch_size: int
    axis_name: str | None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown model.branches {self.kind!r}; choose {', '.join(KINDS)}")
        if self.level not in LEVELS:
            raise ValueError(
                f"unknown model.branch_level {self.level!r}; choose {', '.join(LEVELS)}"
            )
        if not 0 <= self.last_probability <= 1:
            raise ValueError(f"model.last_probability {self.last_probability} must be in 0..1")

    def scale(self, branch: jax.Array, block: int, *, train: bool) -> jax.Array:
        """Returns f F(x), in training, or its mean.

        Args:
          branch: F(x), `(examples, height, width, channels)`.
          block: l, from 1 on.
          train: whether to draw f from the keys of the examples.

        Raises:
          ValueError: in training, if there are no keys of the examples.
        """
        if self.kind == "plain":
            return branch
        probability = 1 - block / self.num_blocks * (1 - self.last_probability)
        if not train:
            return branch * (0.5 if self.kind == "shake" else probability)
        keys = example_keys()
        if keys is None or len(keys) != len(branch):
            raise ValueError(
                f"model.branches {self.kind!r} needs a key for each of {len(branch)} examples; "
                "call the model in models.dropout.apply"
            )
        if self.level == "batch":
            factors = self._of_ghosts(branch, keys, probability)
        else:
            factors = self._draw(branch, keys, probability)
        return scale(branch, *(factor.astype(branch.dtype) for factor in factors))

    def _draw(
        self, branch: jax.Array, keys: jax.Array, probability: float
    ) -> tuple[jax.Array, jax.Array]:
        """f and f', `(keys, 1 or height, 1 or width, 1 or channels)`."""
        last = branch.ndim - 1
        shape = {"channel": (1,) * (last - 1) + branch.shape[-1:], "pixel": branch.shape[1:]}
        of_level = shape.get(self.level, (1,) * last)
        least = -1.0 if self.kind == "shake_drop" else 0.0

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            of_b, of_a, of_c = jax.random.split(key, 3)
            b = jax.random.bernoulli(of_b, probability).astype(jnp.float32)
            a = jax.random.uniform(of_a, of_level, minval=least)
            c = jax.random.uniform(of_c, of_level)
            match self.kind:
                case "stochastic_depth":
                    b = jnp.broadcast_to(b, of_level)
                    return b, b
                case "shake":
                    return a, c
            return b + a - b * a, b + c - b * c

        return jax.vmap(draw)(keys)

    def _of_ghosts(
        self, branch: jax.Array, keys: jax.Array, probability: float
    ) -> tuple[jax.Array, ...]:
        """f and f' `(examples, 1, 1, 1)`, by the first example of each ghost batch."""
        num_devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        sharing = devices_per_ghost(len(branch), self.ghost_batch_size, num_devices)
        of_ghost = self.ghost_batch_size // sharing
        factors = jnp.stack(self._draw(branch, keys[::of_ghost], probability))
        if sharing > 1:
            assert self.axis_name is not None
            groups = groups_of_devices(num_devices, sharing)
            is_first = lax.axis_index(self.axis_name) % sharing == 0
            factors = jnp.where(is_first, factors, 0.0)
            factors = lax.psum(factors, self.axis_name, axis_index_groups=groups)
        return tuple(jnp.repeat(factors, of_ghost, axis=1))


@jax.custom_vjp
def scale(x: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Returns `forward * x`; its gradient in x is multiplied by `backward` instead.

    Args:
      x: any shape.
      forward, backward: arrays that broadcast to the shape of x, of its dtype; no gradient reaches
        them.
    """
    return forward * x


def _forward(x: jax.Array, forward: jax.Array, backward: jax.Array) -> tuple[jax.Array, jax.Array]:
    return forward * x, backward


def _backward(backward: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    return backward * gradient, None, None


scale.defvjp(_forward, _backward)
