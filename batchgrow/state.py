"""The training state: everything that an update changes, in one frozen pytree."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

Sums = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds beside `examples_seen`; identical on every device.

    Attributes:
      params: the model's parameters, float32.
      batch_stats: running statistics of ghost batch norm, float32; their shapes do not depend on
        the batch size.
      opt_state: the optimizer's accumulators.
      sums: training metrics summed since the last row of the log: `loss`, `correct`, `count`,
        float32 scalars. Part of the state so that a resumed run writes the same rows.
    """

    params: Any
    batch_stats: Any
    opt_state: Any
    sums: Sums


def zero_sums() -> Sums:
    """Metric sums over no examples."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "count")}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
) -> TrainState:
    """A state at `examples_seen` 0: parameters drawn from `seed`, accumulators zero.

    Args:
      image_shape: (height, width, channels) of the images that the model sees.
    """
    key = jax.random.fold_in(jax.random.key(seed), 0)
    image = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, image, train=True))(key)
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    return TrainState(params, batch_stats, optimizer.init(params), zero_sums())


def digest(state: TrainState) -> jax.Array:
    """A uint32 checksum of each leaf, `(num_leaves,)`, that any flipped bit changes.

    Each 32-bit word is weighted by an odd number, so that no single flip cancels modulo 2^32.
    Integer arithmetic is exact on every backend; it runs on the device, beside training.
    """
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(state)])


def _checksum(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)
