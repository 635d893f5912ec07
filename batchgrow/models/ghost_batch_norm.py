"""Ghost batch normalisation: statistics over a fixed number of examples, whatever the batch.

If batch statistics were taken over the whole batch, the mean gradient would change with the batch
size and growing the batch would not be the same as decaying the learning rate. Hoffer, Hubara &
Soudry (2017) therefore normalise *ghost batches* of a fixed size; Smith et al. (2018, Sec. 5)
train with them. Here a ghost batch is `ghost_batch_size` consecutive examples of the training
stream, so statistics depend neither on the batch size nor on how a batch is laid out on devices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Initializer = jax.nn.initializers.Initializer


class GhostBatchNorm(nn.Module):
    """Normalises each ghost batch by its own mean and variance (Hoffer et al. 2017, Alg. 1).

    Training normalises by the statistics of each ghost batch; evaluation by running statistics.
    These advance once per ghost batch, in the order of the stream, as if the ghost batches had
    been seen one after another. After K of them with statistics mu_1 .. mu_K,

        running <- m^K running + (1 - m) sum_i m^(K - i) mu_i,

    so their horizon, counted in examples, does not stretch when the batch grows.

    Input `(batch, ..., channels)` of any float dtype. `batch` is a multiple of `ghost_batch_size`,
    or a whole fraction of it: then neighbouring devices on `axis_name` share a ghost batch.

    Attributes:
      ghost_batch_size: examples that share statistics.
      use_running_average: normalise by running statistics (evaluation).
      axis_name: the mapped device axis, or None on one device.
      momentum: m above, per ghost batch (PyTorch's momentum 0.1 is 0.9 here).
      epsilon: added to the variance.
      dtype: the dtype of the output. Statistics and parameters are float32.
      scale_init: the initializer of the scale of each channel.
      bias_init: the initializer of the bias that is then added to each channel.
    """

    ghost_batch_size: int
    use_running_average: bool
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` normalised, same shape, in `dtype`.

        Raises:
          ValueError: in training, if neither `batch` nor `ghost_batch_size` divides the other.
        """
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", self.bias_init, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        if self.use_running_average:
            return normalise(x, mean.value, var.value, scale, bias, self.epsilon, self.dtype)
        if self.is_initializing():
            return x.astype(self.dtype)
        y, mean.value, var.value = normalise_ghosts(
            x,
            (mean.value, var.value),
            (scale, bias),
            ghost_batch_size=self.ghost_batch_size,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        return y


def normalise_ghosts(
    x: jax.Array,
    running: tuple[jax.Array, jax.Array],
    scale_and_bias: tuple[jax.Array, jax.Array],
    *,
    ghost_batch_size: int,
    axis_name: str | None,
    momentum: float,
    epsilon: float,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ghost batch norm in training, for any module system; arguments as in `GhostBatchNorm`.

    Args:
      x: `(batch, ..., channels)`.
      running: the running mean and variance, float32 `(channels,)`.
      scale_and_bias: float32 `(channels,)`.

    Returns:
      `x` normalised, and the new running mean and variance.

    Raises:
      ValueError: if `batch` and `ghost_batch_size` do not divide.
    """
    num_devices = 1 if axis_name is None else lax.axis_size(axis_name)
    sharing = devices_per_ghost(x.shape[0], ghost_batch_size, num_devices)
    ghosts = x.reshape(-1, ghost_batch_size // sharing, *x.shape[1:])
    axes = tuple(range(1, ghosts.ndim - 1))
    as_float = ghosts.astype(jnp.float32)
    ghost_mean, mean_square = as_float.mean(axes), lax.square(as_float).mean(axes)
    if sharing > 1:
        assert axis_name is not None
        groups = groups_of_devices(num_devices, sharing)
        moments = jnp.stack([ghost_mean, mean_square])  # for one collective
        ghost_mean, mean_square = lax.pmean(moments, axis_name, axis_index_groups=groups)
    ghost_var = jnp.maximum(mean_square - lax.square(ghost_mean), 0.0)
    mean, var = (
        _advance(before, new, sharing, momentum, num_devices, axis_name)
        for before, new in zip(running, (ghost_mean, ghost_var), strict=True)
    )

    across = (slice(None), *(None,) * len(axes))
    y = normalise(ghosts, ghost_mean[across], ghost_var[across], *scale_and_bias, epsilon, dtype)
    return y.reshape(x.shape), mean, var


def _advance(
    running: jax.Array,
    new: jax.Array,
    sharing: int,
    momentum: float,
    num_devices: int,
    axis_name: str | None,
) -> jax.Array:
    """The closed form above: `running` (channels,), `new` (local ghosts, channels).

    Each device adds its part of the running statistic, so that nothing is left to do after the sum
    over the devices.
    """
    new = lax.stop_gradient(new)
    num_local = new.shape[0]
    total = num_local * num_devices // sharing
    first: Any = 0
    if axis_name is not None and num_devices > 1:
        first = num_local * (lax.axis_index(axis_name) // sharing)
    age = total - 1 - (first + jnp.arange(num_local))
    weights = (1.0 - momentum) / sharing * momentum ** age.astype(jnp.float32)
    advanced = momentum**total / num_devices * running + (weights[:, None] * new).sum(0)
    if axis_name is not None and num_devices > 1:
        advanced = lax.psum(advanced, axis_name)
    return advanced


def devices_per_ghost(local_batch_size: int, ghost_batch_size: int, num_devices: int) -> int:
    """How many neighbouring devices share one ghost batch; 1 if each device holds whole ones.

    Raises:
      ValueError: if neither size divides the other, or there are too few devices to share one.
    """
    if local_batch_size % ghost_batch_size == 0:
        return 1
    sharing, rest = divmod(ghost_batch_size, local_batch_size)
    if rest == 0 and num_devices % sharing == 0:
        return sharing
    raise ValueError(
        f"ghost_batch_size {ghost_batch_size}: {local_batch_size} examples on each of "
        f"{num_devices} devices are not a multiple of the ghost batch, and no whole number of "
        "devices holds exactly one; use a batch size that is a multiple of the ghost batch"
    )


def groups_of_devices(num_devices: int, sharing: int) -> list[list[int]]:
    """Returns the groups of `sharing` neighbouring devices that share one ghost batch.

    >>> groups_of_devices(4, 2)
    [[0, 1], [2, 3]]
    """
    devices = range(num_devices)
    return [list(devices[i : i + sharing]) for i in devices[::sharing]]


def normalise(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: Any,
) -> jax.Array:
    """Returns (x - mean) / sqrt(var + epsilon) * scale + bias, in float32 until the end.

    Args:
      x: `(..., channels)`.
      mean, var, scale, bias: float32, of shapes that broadcast with the last axes of `x`.
      epsilon: added to the variance.
      dtype: of the result, which has the shape of `x`.
    """
    mean, var, scale, bias = (
        v.reshape((1,) * (x.ndim - v.ndim) + v.shape) for v in (mean, var, scale, bias)
    )
    factor = lax.rsqrt(var + epsilon) * scale
    return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(dtype)
