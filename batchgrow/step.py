"""One update and one evaluation: pure functions of arrays, wrapped for devices in parallel.py."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from batchgrow.state import Sums, TrainState, zero_sums

Batch = dict[str, jax.Array]
# From a batch and the data set that lives on the device (or ()) to float images and int labels.
Prepare = Callable[[Batch, Any], tuple[jax.Array, jax.Array]]


def train_step(
    state: TrainState,
    batch: Batch,
    learning_rate: jax.Array,
    dataset: Any,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
) -> TrainState:
    """One update: w <- w - learning_rate * d, with d from the mean gradient over the global batch.

    Args:
      state: as after the update before.
      batch: leaves `(num_microbatches, microbatch, ...)`, this device's share of the global batch.
        Gradients are averaged over micro-batches; running statistics pass through them in order.
      learning_rate: float32 scalar, traced.
      dataset: the training set on the device, or () if the batch holds the examples themselves.
      model, optimizer, prepare: what to train, how, and how a batch becomes images and labels.
      label_smoothing: probability spread evenly over all classes.
      axis_name: the mapped device axis, or None.

    Returns:
      The state after the update, with its metric sums advanced by this batch.
    """

    def loss_fn(params, batch_stats, microbatch):
        images, labels = prepare(microbatch, dataset)
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = cross_entropy(logits, labels, label_smoothing)
        sums = metric_sums(losses, logits, labels, jnp.ones_like(losses))
        return losses.mean(), (updated.get("batch_stats", batch_stats), sums)

    def accumulate(carry, microbatch):
        gradients, batch_stats, sums = carry
        new, (batch_stats, more) = jax.grad(loss_fn, has_aux=True)(
            state.params, batch_stats, microbatch
        )
        return (_add(gradients, new), batch_stats, _add(sums, more)), None

    num_microbatches = jax.tree.leaves(batch)[0].shape[0]
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    carry = (zeros, state.batch_stats, zero_sums())
    (gradients, batch_stats, sums), _ = lax.scan(accumulate, carry, batch)
    gradients = jax.tree.map(lambda g: g / num_microbatches, gradients)
    if axis_name is not None:
        gradients = lax.pmean(gradients, axis_name)
        sums = lax.psum(sums, axis_name)

    direction, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda w, d: w - learning_rate * d, state.params, direction)
    return TrainState(params, batch_stats, opt_state, _add(state.sums, sums))


def train_steps(
    step: Callable[[TrainState, Batch, jax.Array, Any], TrainState],
    state: TrainState,
    batches: Batch,
    learning_rates: jax.Array,
    num_updates: jax.Array,
    dataset: Any,
) -> tuple[TrainState, jax.Array]:
    """The first `num_updates` of several updates, in one dispatch.

    The count is traced, so one executable serves any number of updates, and how a run is cut into
    dispatches does not change its result.

    Args:
      step: `train_step` with all but its first four arguments bound.
      batches: leaves `(updates, num_microbatches, microbatch, ...)`.
      learning_rates: float32 `(updates,)`.
      num_updates: int32 scalar, at most `updates`.

    Returns:
      The state, and its summed loss once more as a scalar that is never donated: a host that
      waits for it knows that the dispatch is done.
    """
    if learning_rates.shape[0] == 1:
        state = step(state, jax.tree.map(lambda x: x[0], batches), learning_rates[0], dataset)
        return state, state.sums["loss"] + 0.0

    def body(i, state):
        batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
        return step(state, batch, learning_rates[i], dataset)

    state = lax.fori_loop(0, num_updates, body, state)
    return state, state.sums["loss"] + 0.0


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    dataset: Any,
    *,
    model: nn.Module,
    prepare: Prepare,
    axis_name: str | None = None,
) -> Sums:
    """Metric sums over the examples of `batch` whose `mask` is 1, by running statistics.

    Args:
      batch: leaves `(examples, ...)`, `mask` float32: 0 for padding.
    """
    images, labels = prepare(batch, dataset)
    logits: Any = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
    losses = cross_entropy(logits, labels)
    sums = metric_sums(losses, logits, labels, batch["mask"])
    return lax.psum(sums, axis_name) if axis_name is not None else sums


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy of each example, float32 `(batch,)`."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def metric_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Loss, correct answers and examples, summed where `mask` is 1 (all `(batch,)`)."""
    correct = jnp.argmax(logits, -1) == labels
    return {
        "loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)),
        "correct": jnp.sum(correct * mask),
        "count": jnp.sum(mask),
    }


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
