"""One update and one evaluation: pure functions of arrays. layout.py maps them over devices."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from batchgrow.tasks import Task

Batch = dict[str, Any]
Sums = dict[str, jax.Array]
# Turns a batch and the arrays that every device holds into the examples that a task takes.
GetExamples = Callable[[Batch, Any], Any]


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes. It is the same on every device.

    Attributes:
      params: the parameters, float32.
      model_state: the other variables of the model, such as the running statistics of ghost batch
        norm. Their shapes do not depend on the batch size.
      opt_state: the accumulators of the optimizer.
      average: the exponential average of the parameters that is evaluated; None without one.
      sums: the training metrics summed since the last row of the log, float32 scalars. They are
        part of the state so that a resumed run writes the same rows.
      path: {"length", "last"}, float32 scalars: the sum of the norms of all steps, and the norm of
        the last step; None if they are not traced.
    """

    params: Any
    model_state: Any
    opt_state: Any
    average: Any
    sums: Sums
    path: Any = None

    @property
    def evaluated(self) -> Mapping[str, Any]:
        """The variables that an evaluation uses."""
        params = self.params if self.average is None else self.average
        return {"params": params, **self.model_state}


def create_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    example: Any,
    seed: int,
    *,
    averages: bool = False,
    traces: bool = False,
) -> TrainState:
    """Returns the initial state: parameters drawn from `seed`, accumulators at zero.

    Args:
      example: a batch of one example.
      averages: whether to keep an exponential average of the parameters.
      traces: whether to keep the length of the path.

    Raises:
      ValueError: for a parameter that is not float32.
    """

    def init(key: jax.Array) -> tuple[dict[str, Any], Any]:
        examples = jax.tree.map(jnp.asarray, example)
        variables = dict(task.init(key, examples))
        outputs = task.loss(variables, examples, None, train=False)
        return variables, outputs.metrics

    key = jax.random.fold_in(jax.random.key(seed), 0)
    variables = jax.jit(lambda key: init(key)[0])(key)
    metrics = jax.eval_shape(init, key)[1]
    params = variables.pop("params")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype != jnp.float32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the parameter {name} is {leaf.dtype}; keep parameters in float32, and let the "
                "model compute in another type (model.dtype)"
            )
    # The state is donated, so no array may be in it twice: some optimizers start at the parameters.
    opt_state = jax.tree.map(jnp.copy, optimizer.init(params))
    sums = {name: jnp.zeros((), jnp.float32) for name in ("count", "loss", *metrics)}
    average = jax.tree.map(jnp.copy, params) if averages else None
    path = {name: jnp.zeros((), jnp.float32) for name in ("length", "last")} if traces else None
    return TrainState(params, variables, opt_state, average, sums, path)


def example_keys(seed: int, positions: jax.Array) -> jax.Array:
    """Returns a random key for each example, `(examples,)`, from (seed, stream position)."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def update(
    state: TrainState,
    batch: Batch,
    learning_rate: jax.Array,
    arrays: Any,
    momentum: jax.Array | None = None,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    examples: GetExamples,
    seed: int,
    average_decay: float | None = None,
    axis_name: str | None = None,
) -> TrainState:
    """One update: w <- w - learning_rate * d, with d from the mean gradient over the batch.

    Args:
      state: the state after the update before.
      batch: leaves `(micro-batches, examples, ...)`, this device's share of the batch, with the
        stream positions as `batch["position"]`. Gradients are averaged over micro-batches; the
        model state passes through them in order.
      learning_rate: float32 scalar, traced.
      arrays: the part of the training set that every device holds, or ().
      momentum: float32 scalar, traced; None if the optimizer has its own.
      task, optimizer: what is trained and how.
      examples: makes the task's examples from a micro-batch and `arrays`.
      seed: determines the random keys of the examples.
      average_decay: d of average <- d average + (1 - d) w; None without an average.
      axis_name: the mapped device axis, or None.

    Returns:
      The state after the update, with its metric sums advanced by this batch.
    """

    def loss_fn(params: Any, model_state: Any, microbatch: Batch) -> tuple[jax.Array, Any]:
        keys = example_keys(seed, microbatch["position"])
        variables = {"params": params, **model_state}
        outputs = task.loss(variables, examples(microbatch, arrays), keys, train=True)
        sums = _sums(outputs.losses, outputs.metrics)
        return outputs.losses.mean(), (outputs.model_state, sums)

    def accumulate(carry: Any, microbatch: Batch) -> tuple[Any, None]:
        gradients, model_state, sums = carry
        new, (model_state, more) = jax.grad(loss_fn, has_aux=True)(
            state.params, model_state, microbatch
        )
        return (_add(gradients, new), model_state, _add(sums, more)), None

    num_microbatches, count = batch["position"].shape[0], batch["position"].size
    summed = {name: value for name, value in state.sums.items() if name != "count"}
    zeros = jax.tree.map(jnp.zeros_like, (state.params, summed))
    carry = (zeros[0], state.model_state, zeros[1])
    (gradients, model_state, sums), _ = lax.scan(accumulate, carry, batch)
    gradients = jax.tree.map(lambda g: g / num_microbatches, gradients)
    if axis_name is not None:
        gradients = lax.pmean(gradients, axis_name)
        sums = lax.psum(sums, axis_name)
        count *= lax.axis_size(axis_name)
    sums |= {"count": jnp.float32(count)}

    extra = {} if momentum is None else {"momentum": momentum}
    direction, opt_state = optimizer.update(gradients, state.opt_state, state.params, **extra)
    params = jax.tree.map(lambda w, d: w - learning_rate * d, state.params, direction)
    average = state.average
    if average_decay is not None:
        average = optax.incremental_update(params, average, 1 - average_decay)
    path = state.path
    if path is not None:
        last = learning_rate * optax.global_norm(direction)
        path = {"length": path["length"] + last, "last": last}
    return TrainState(params, model_state, opt_state, average, _add(state.sums, sums), path)


def updates(
    state: TrainState,
    batches: Batch,
    learning_rates: jax.Array,
    num_updates: jax.Array,
    arrays: Any,
    momenta: jax.Array | None = None,
    *,
    update: Callable[..., TrainState],
) -> tuple[TrainState, jax.Array]:
    """Makes the first `num_updates` of several updates, in one dispatch.

    The count is traced, so one executable serves any number of updates, and how a run is cut into
    dispatches does not change its result.

    Args:
      batches: leaves `(updates, micro-batches, examples, ...)`.
      learning_rates: float32 `(updates,)`.
      num_updates: int32 scalar, at most `updates`.
      arrays: as in `update`.
      momenta: float32 `(updates,)`; None if the optimizer has its own.
      update: `update` with its keyword arguments bound.

    Returns:
      The state, and a copy of its summed loss, a scalar that is never donated. The host waits for
      this scalar to know that the dispatch is done.
    """

    def body(i: Any, state: TrainState) -> TrainState:
        batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
        momentum = None if momenta is None else momenta[i]
        return update(state, batch, learning_rates[i], arrays, momentum)

    if learning_rates.shape[0] == 1:
        state = body(0, state)
    else:
        state = lax.fori_loop(0, num_updates, body, state)
    return state, state.sums["loss"] + 0.0


def evaluate(
    variables: Mapping[str, Any], batch: Batch, *, task: Task, axis_name: str | None = None
) -> Sums:
    """Returns the metric sums over the examples of `batch` whose mask is 1.

    Args:
      variables: the variables of the model (see `TrainState.evaluated`).
      batch: `{"examples": leaves (examples, ...), "mask": float32 (examples,)}`; the mask is 0 for
        padding.
    """
    outputs = task.loss(variables, batch["examples"], None, train=False)
    sums = _sums(outputs.losses, outputs.metrics, batch["mask"])
    sums |= {"count": jnp.sum(batch["mask"])}
    return lax.psum(sums, axis_name) if axis_name is not None else sums


def trace(state: TrainState, start: Any) -> Sums:
    """Returns the columns of a trace (see `Engine.trace`), float32 scalars.

    Args:
      state: a state that has a path.
      start: the parameters before the first update.
    """
    difference = jax.tree.map(jnp.subtract, state.params, start)
    found = {
        "distance": optax.global_norm(difference),
        "path_length": state.path["length"],
        "step_norm": state.path["last"],
    }
    sums = [part for _, part in optax.tree_utils.tree_get_all_with_path(state.opt_state, "trace")]
    return found | ({"momentum_norm": optax.global_norm(sums)} if sums else {})


def _sums(losses: jax.Array, metrics: Mapping[str, jax.Array], mask: Any = 1) -> Sums:
    """The sums of all `(examples,)` arrays where the mask is not 0."""
    return {
        name: jnp.sum(jnp.where(mask > 0, value, 0.0), dtype=jnp.float32)
        for name, value in {"loss": losses, **metrics}.items()
    }


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
