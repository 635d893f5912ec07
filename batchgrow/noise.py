"""Measures the gradient noise of a batch: the squared norms that `plan.noise.estimate` takes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from batchgrow.step import Batch, GetExamples, TrainState, example_keys
from batchgrow.tasks import Task

Norms = dict[str, jax.Array]


def squared_norms(piece_gradients: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (s, G): the mean squared norm of piece gradients, and that of their mean.

    >>> s, G = squared_norms({"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])})
    >>> float(s), float(G)
    (1.0, 0.5)

    Args:
      piece_gradients: a pytree of arrays `(pieces, ...)`, for example of `jax.vmap(jax.grad(...))`.

    Returns:
      Two scalars.
    """
    leaves = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(piece_gradients)]
    pieces = sum(jnp.sum(jnp.square(x), 1) for x in leaves)
    batch = sum(jnp.sum(jnp.square(x.mean(0))) for x in leaves)
    return jnp.mean(jnp.asarray(pieces)), jnp.asarray(batch)


def measure(
    state: TrainState,
    pieces: Batch,
    weights: jax.Array,
    arrays: Any,
    *,
    task: Task,
    examples: GetExamples,
    seed: int,
    axis_name: str | None = None,
) -> Norms:
    """Returns squared norms of piece gradients, before clipping and without weight decay.

    The pieces are computed one after another. The cost is that of training on as many examples,
    and the memory does not depend on the number of pieces. The state does not change.

    Args:
      state: the training state.
      pieces: this device's share of what the host sends, leaves `(pieces, examples, ...)`.
      weights: float32 `(pieces,)`: 1, or 0 for a piece that only fills up the devices.
      arrays: the part of the training set that every device holds, or ().
      task, examples, seed: as in `step.update`.
      axis_name: the mapped device axis, or None.

    Returns:
      "piece" (s) and "batch" (G), float32 scalars. With an optimizer that keeps second moments v,
      as Adam does, also "piece_preconditioned" and "batch_preconditioned", whose squared norm of x
      is the sum of x_i^2 / (sqrt(v_i) + 1e-8).
    """
    scale = _preconditioner(state.opt_state)
    norms = {"": None} if scale is None else {"": None, "_preconditioned": scale}

    def loss_fn(params: Any, piece: Batch) -> jax.Array:
        keys = example_keys(seed, piece["position"])
        variables = {"params": params, **state.model_state}
        return task.loss(variables, examples(piece, arrays), keys, train=True).losses.mean()

    def accumulate(carry: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        total, squares = carry
        piece, weight = item
        gradient = jax.grad(loss_fn)(state.params, piece)
        squares = {n: squares[n] + weight * _squared_norm(gradient, norms[n]) for n in norms}
        return (jax.tree.map(lambda t, g: t + weight * g, total, gradient), squares), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    carry = (zeros, {name: jnp.zeros((), jnp.float32) for name in norms})
    (total, squares), _ = lax.scan(accumulate, carry, (pieces, weights))
    count = weights.sum()
    if axis_name is not None:
        total, squares, count = lax.psum((total, squares, count), axis_name)
    mean = jax.tree.map(lambda t: t / count, total)
    return {f"piece{name}": square / count for name, square in squares.items()} | {
        f"batch{name}": _squared_norm(mean, norms[name]) for name in norms
    }


def _squared_norm(tree: Any, scale: Any) -> jax.Array:
    """The sum of squares of all entries, times `scale` if there is one."""
    squares = jax.tree.map(jnp.square, tree)
    if scale is not None:
        squares = jax.tree.map(jnp.multiply, squares, scale)
    return jnp.sum(jnp.stack([jnp.sum(x) for x in jax.tree.leaves(squares)]))


def _preconditioner(opt_state: Any) -> Any:
    """1 / (sqrt(v) + 1e-8) of an optimizer that keeps second moments v as Adam does, else None.

    v is not debiased: a factor that all parameters share cancels in the noise scale.
    """

    def is_adam(x: Any) -> bool:
        return isinstance(x, optax.ScaleByAdamState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
    if not found:
        return None
    return jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + 1e-8), found[0].nu)
