"""A last layer whose matrix is fixed (Hoffer, Hubara & Soudry 2018, arXiv 1801.04540)."""

import math
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = ("dense", "hadamard", "orthonormal")


def classifier(kind: str, num_classes: int, kernel_init: nn.initializers.Initializer) -> nn.Module:
    """Returns the last layer of a network, named "classifier".

    Args:
      kind: "dense", a trained matrix; "hadamard" or "orthonormal", as in `FixedClassifier`.
      num_classes: the number of logits.
      kernel_init: the initializer of the trained matrix.

    Raises:
      ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown model.last_layer {kind!r}; choose {', '.join(KINDS)}")
    if kind == "dense":
        return nn.Dense(num_classes, kernel_init=kernel_init, name="classifier")
    return FixedClassifier(num_classes, kind, name="classifier")


class FixedClassifier(nn.Module):
    """logits = s Q x / |x| + b, where only the scale s and the biases b are trained.

    Q is `(num_classes, features)` with rows of length 1. It is computed where it is used, so no
    checkpoint holds it. s starts at 10 and b at 0, as in the authors' code for orthonormal rows.
    Weight decay leaves s alone (see `optimizer`); the paper decays it like any other weight.

    Attributes:
      num_classes: the number of logits, at most the number of features.
      kind: "hadamard", the first rows and columns of Sylvester's matrix of the next power of two,
        which are orthogonal if the number of features is such a power; or "orthonormal", random
        rows drawn with seed 0.
    """

    num_classes: int
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features `(batch, features)` to float32 logits `(batch, num_classes)`.

        Raises:
          ValueError: if there are more classes than features.
        """
        features = x.shape[-1]
        if self.num_classes > features:
            raise ValueError(
                f"model.last_layer {self.kind!r} separates at most as many classes as there are "
                f"features, but model.num_classes is {self.num_classes} and there are {features} "
                "features; choose 'dense' or a wider network"
            )
        logit_scale = self.param("logit_scale", nn.initializers.constant(10.0), ())
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        matrix = (hadamard if self.kind == "hadamard" else orthonormal)(self.num_classes, features)
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)
        return logit_scale * (x @ matrix.T) + bias[None]


def hadamard(rows: int, columns: int) -> jax.Array:
    """The first rows and columns of Sylvester's matrix, divided by the root of `columns`, float32.

    Its entry (i, j) is -1 to the power of the number of bits that i and j share.
    """
    shared = jnp.arange(rows)[:, None] & jnp.arange(columns)[None, :]
    signs = 1 - 2 * (lax.population_count(shared) & 1)
    return signs.astype(jnp.float32) / math.sqrt(columns)


@cache
def orthonormal(rows: int, columns: int) -> np.ndarray:
    """Random orthonormal rows, float32 `(rows, columns)`, always the same.

    They are computed in float64 and then rounded, so that machines agree.
    """
    drawn = np.random.default_rng(0).standard_normal((columns, rows))
    q, r = np.linalg.qr(drawn)
    return (q * np.sign(np.diag(r))).T.astype(np.float32)
