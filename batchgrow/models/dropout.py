"""Dropout whose masks depend on the examples alone, not on how a batch is split.

Models use `nn.Dropout` as any Flax module does, and `apply` makes it draw the mask of example i
from `keys[i]`. With keys folded from (seed, stream position), a run has the same masks on any
devices, with any micro-batches, and after a resume.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# The keys of the batch that a model is applied to, and how often `example_keys` was called.
_keys: ContextVar[list[Any] | None] = ContextVar("keys", default=None)


def example_keys() -> jax.Array | None:
    """Returns new typed PRNG keys `(examples,)` at each call, for modules that draw by example.

    None outside of `masks_by_example`. Not for the body of an `nn.scan`, whose steps would all get
    the same keys.
    """
    state = _keys.get()
    if state is None:
        return None
    keys, count = state
    state[1] += 1
    return jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)


def apply(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: Any,
    keys: jax.Array | None,
    *,
    train: bool,
) -> tuple[Any, dict[str, Any]]:
    """Calls `model(inputs, train=train)`.

    Args:
      model: a Flax module. Its only random numbers are the masks of `nn.Dropout` and those drawn
        from `example_keys`.
      variables: {"params": ..., **model_state}.
      inputs: arrays `(examples, ...)`.
      keys: typed PRNG keys `(examples,)`, needed in training with dropout.
      train: whether model state (e.g. "batch_stats") is updated and dropout is active.

    Returns:
      The outputs, and the model state after this batch: every collection but "params".
    """
    model_state = {name: tree for name, tree in variables.items() if name != "params"}
    if not train:
        return model.apply(variables, inputs, train=False), model_state
    # This key tells layers apart; Flax folds the path and the number of the call into it.
    rngs = None if keys is None else {"dropout": jax.random.key(0)}
    with masks_by_example(keys):
        outputs, updated = model.apply(
            variables, inputs, train=True, mutable=list(model_state), rngs=rngs
        )
    return outputs, {**model_state, **updated}


@contextmanager
def masks_by_example(keys: jax.Array | None) -> Iterator[None]:
    """A context in which each `nn.Dropout` draws the mask of example i from `keys[i]`.

    The key of a mask is `keys[i]` folded with bits that the layer draws from Flax's "dropout"
    stream, so masks differ between layers, between calls of one layer, and between the steps of
    an `nn.scan` that splits the stream.

    Args:
      keys: typed PRNG keys `(examples,)`, or None to change nothing.

    Raises (in the context):
      ValueError: if the first axis of a layer's inputs does not count the examples, or if another
        module (e.g. `nn.MultiHeadDotProductAttention`) draws from the "dropout" stream, or takes
        the statistics of a batch (`nn.BatchNorm`).
    """

    def interceptor(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        module = context.module
        if keys is None:
            return next_fun(*args, **kwargs)
        if isinstance(module, nn.Dropout) and context.method_name == "__call__":
            return _dropout(module, keys, next_fun, *args, **kwargs)
        if isinstance(module, nn.BatchNorm):
            _check_batch_norm(module, *args[1:], **kwargs)
        counters = module.scope.rng_counters if module.scope is not None else {}
        before = counters.get("dropout")
        outputs = next_fun(*args, **kwargs)
        if counters.get("dropout") != before:
            raise ValueError(
                f"{type(module).__name__} draws from the 'dropout' stream itself, so its masks "
                "would be the same in every update: use nn.Dropout in it"
            )
        return outputs

    token = _keys.set(None if keys is None else [keys, 0])
    try:
        with nn.intercept_methods(interceptor):
            yield
    finally:
        _keys.reset(token)


def _check_batch_norm(
    module: nn.BatchNorm, use_running_average: bool | None = None, **_: Any
) -> None:
    """Refuses statistics that would differ between devices, and with the number of them."""
    if not (module.use_running_average if use_running_average is None else use_running_average):
        raise ValueError(
            f"{module.name} is nn.BatchNorm, whose statistics depend on how the batch lies on the "
            "devices: use batchgrow.GhostBatchNorm"
        )


def _dropout(
    module: nn.Dropout,
    keys: jax.Array,
    next_fun: Any,
    inputs: jax.Array,
    deterministic: bool | None = None,
    rng: jax.Array | None = None,
) -> jax.Array:
    """`nn.Dropout.__call__` with a mask drawn for each example."""
    off = nn.merge_param("deterministic", module.deterministic, deterministic)
    if off or module.rate in (0.0, 1.0) or rng is not None:
        return next_fun(inputs, deterministic, rng)
    if inputs.ndim == 0 or inputs.shape[0] != keys.shape[0]:
        raise ValueError(
            f"nn.Dropout has inputs {inputs.shape} for {keys.shape[0]} examples: their first axis "
            "must count the examples"
        )
    dims = [dim % inputs.ndim for dim in module.broadcast_dims]
    if 0 in dims:
        raise ValueError(
            "nn.Dropout with broadcast_dims 0 shares a mask between examples: remove 0"
        )
    shape = tuple(1 if dim in dims else size for dim, size in enumerate(inputs.shape))[1:]
    keep = 1.0 - module.rate
    layer = jax.random.bits(module.make_rng(module.rng_collection))

    def mask_of(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), keep, shape)

    mask = jnp.broadcast_to(jax.vmap(mask_of)(keys), inputs.shape)
    return jnp.where(mask, inputs / keep, jnp.zeros_like(inputs))
