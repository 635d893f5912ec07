"""Modules for Flax NNX: ghost batch norm, dropout, and an adapter of NNX models for tasks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from batchgrow.models.dropout import example_keys
from batchgrow.models.ghost_batch_norm import Initializer, normalise, normalise_ghosts
from batchgrow.names import parameters


class GhostBatchNorm(nnx.Module):
    """`batchgrow.GhostBatchNorm` as an NNX module, with the same results bit for bit.

    `model.train()` and `model.eval()` switch between the statistics of each ghost batch and the
    running statistics, as for `nnx.BatchNorm`.

    Args:
      num_features: the number of channels.
      ghost_batch_size: examples that share statistics.
      use_running_average: normalise by running statistics (evaluation).
      axis_name, momentum, epsilon, dtype, scale_init, bias_init: as in `batchgrow.GhostBatchNorm`.
      rngs: random keys for the initial scale and bias.
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch_size: int,
        use_running_average: bool = False,
        axis_name: str | None = None,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        scale_init: Initializer = jax.nn.initializers.ones,
        bias_init: Initializer = jax.nn.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        shape = (num_features,)
        self.scale = nnx.Param(scale_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), shape, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(shape, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(shape, jnp.float32))
        self.ghost_batch_size = ghost_batch_size
        self.use_running_average = use_running_average
        self.axis_name = axis_name
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` `(batch, ..., channels)` normalised, same shape, in `dtype`.

        Raises:
          ValueError: in training, if `batch` and `ghost_batch_size` do not divide.
        """
        scale, bias, mean, var = (v[...] for v in (self.scale, self.bias, self.mean, self.var))
        if self.use_running_average:
            return normalise(x, mean, var, scale, bias, self.epsilon, self.dtype)
        y, self.mean[...], self.var[...] = normalise_ghosts(
            x,
            (mean, var),
            (scale, bias),
            ghost_batch_size=self.ghost_batch_size,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        return y


class Dropout(nnx.Module):
    """Dropout whose masks depend on the examples alone (see `models.dropout`).

    Use it in models that the engine trains; `nnx.Dropout` draws one mask for whatever batch it
    gets, which changes with the number of devices.

    Args:
      rate: the probability that an input becomes 0.
      deterministic: do nothing; `model.train()` and `model.eval()` set it.
    """

    def __init__(self, rate: float, *, deterministic: bool = False):
        self.rate = rate
        self.deterministic = deterministic

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`, `(examples, ...)`, with some of it 0 and the rest scaled up.

        Raises:
          ValueError: in training without keys of the examples.
        """
        if self.deterministic or self.rate == 0.0:
            return x
        keys = example_keys()
        if keys is None or keys.shape[0] != x.shape[0]:
            raise ValueError(
                f"batchgrow.models.nnx.Dropout has inputs {x.shape} and no key for each of them; "
                "call the model in models.dropout.apply, or use nnx.Dropout in a loop of your own"
            )
        keep = 1.0 - self.rate
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))


class NNXModel:
    """An NNX module with `init` and `apply` as a Linen module has them.

    Its `nnx.Param`s are the collection "params", its `nnx.BatchStat`s "batch_stats". If its
    `__call__` has an argument `train`, this is passed. `model.train()` or `model.eval()` is always
    called.

    Args:
      make: returns the module for `rngs=...`.

    Raises:
      ValueError: if the module has variables of other types, such as the random numbers of
        `nnx.Dropout`, or an `nnx.BatchNorm`.
    """

    def __init__(self, make: Callable[..., nnx.Module]):
        self._make = make
        abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        self._graph, params, stats, others = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)
        self._states = {"params": params, "batch_stats": stats}
        self._takes_train = "train" in parameters(type(abstract).__call__)
        for path, node in nnx.iter_graph(abstract):
            if isinstance(node, nnx.BatchNorm):
                raise ValueError(
                    f"{'.'.join(map(str, path))} is nnx.BatchNorm, whose statistics depend on how "
                    "the batch lies on the devices: use batchgrow.models.nnx.GhostBatchNorm"
                )
        for path, variable in nnx.to_flat_state(others):
            raise ValueError(
                f"{type(abstract).__name__} has the variable {'.'.join(map(str, path))} of type "
                f"{variable.type.__name__}; use nnx.Param and nnx.BatchStat, and for dropout "
                "batchgrow.models.nnx.Dropout"
            )

    def init(self, key: jax.Array, inputs: Any, *, train: bool = False) -> dict[str, Any]:
        """The initial variables by collection, drawn from `key`."""
        del inputs, train  # An NNX module knows the shapes of its parameters.
        return self._variables(self._make(rngs=nnx.Rngs(key)))

    def apply(
        self,
        variables: Mapping[str, Any],
        inputs: Any,
        *,
        train: bool = False,
        mutable: Any = None,
        rngs: Any = None,
    ) -> Any:
        """The outputs; with `mutable` also the collections beside "params" after this batch."""
        del rngs  # `Dropout` takes the keys of the examples.
        states = [_filled(state, variables.get(name, {})) for name, state in self._states.items()]
        module = nnx.merge(self._graph, *states)
        (module.train if train else module.eval)()
        outputs = module(inputs, train=train) if self._takes_train else module(inputs)  # pyright: ignore[reportCallIssue]
        if mutable is None:
            return outputs
        updated = self._variables(module)
        del updated["params"]
        return outputs, updated

    def _variables(self, module: nnx.Module) -> dict[str, Any]:
        _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        pure = {"params": _named(nnx.to_pure_dict(params))}
        stats = _named(nnx.to_pure_dict(stats))
        return pure | ({"batch_stats": stats} if stats else {})


def _named(tree: Any) -> Any:
    """Nested dictionaries with strings for keys; NNX numbers the items of a list."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _named(value) for key, value in tree.items()}


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
    """`state` with these values, nested dictionaries as from `_named`."""
    flat = []
    for path, variable in nnx.to_flat_state(state):
        value: Any = values
        for key in path:
            value = value[str(key)]
        flat.append((path, variable.replace(value)))
    return nnx.from_flat_state(flat)
