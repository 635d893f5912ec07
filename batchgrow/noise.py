"""Measures the gradient noise of a batch: the squared norms that `plan.noise.estimate` takes.

`measure` is for `train`. In a loop of one's own, `squared_norms` takes the gradients of all pieces,
and `accumulate_noise` is an optax transformation that takes them one after another.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from batchgrow.optimizer import ChangingAdamState
from batchgrow.plan.noise import NoiseAverage, estimate
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
      Two float32 scalars.
    """
    leaves = [
        jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)
        for x in jax.tree.leaves(piece_gradients)
    ]
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
    by_layer: bool = False,
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
      by_layer: whether to return the norms of each layer too.
      axis_name: the mapped device axis, or None.

    Returns:
      "piece" (s) and "batch" (G), float32 scalars. With an optimizer that keeps second moments v,
      as Adam does, also "piece_preconditioned" and "batch_preconditioned", whose squared norm of x
      is the sum of x_i^2 / (sqrt(v_i) + 1e-8). By layer, also "piece/LAYER" and "batch/LAYER" with
      the path of each module that has parameters, such as "piece/block0/Conv_0".
    """
    scale = _preconditioner(state)

    def norms_of(gradient: Any) -> Norms:
        norms = {"": _squared_norm(gradient)}
        if scale is not None:
            norms["_preconditioned"] = _squared_norm(gradient, scale)
        if by_layer:
            norms |= {f"/{name}": _squared_norm(x) for name, x in _layers(gradient).items()}
        return norms

    def loss_fn(params: Any, piece: Batch) -> jax.Array:
        keys = example_keys(seed, piece["position"])
        variables = {"params": params, **state.model_state}
        return task.loss(variables, examples(piece, arrays), keys, train=True).losses.mean()

    def accumulate(carry: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        total, squares = carry
        piece, weight = item
        gradient = jax.grad(loss_fn)(state.params, piece)
        squares = jax.tree.map(lambda a, n: a + weight * n, squares, norms_of(gradient))
        return (jax.tree.map(lambda t, g: t + weight * g, total, gradient), squares), None

    zeros = _zeros(state.params)
    carry = (zeros, norms_of(zeros))
    (total, squares), _ = lax.scan(accumulate, carry, (pieces, weights))
    count = weights.sum()
    if axis_name is not None:
        total, squares, count = lax.psum((total, squares, count), axis_name)
    mean = jax.tree.map(lambda t: t / count, total)
    return {f"piece{name}": square / count for name, square in squares.items()} | {
        f"batch{name}": square for name, square in norms_of(mean).items()
    }


class NoiseState(NamedTuple):
    """The state of `accumulate_noise`.

    Attributes:
      total: the sum of the gradients of the pieces so far, float32, shaped as the parameters.
      squares: the sum of their squared norms, float32 scalar.
      count: their number, int32 scalar.
      squared_norm, trace, weight: as in `NoiseAverage`, float32 scalars.
    """

    total: Any
    squares: jax.Array
    count: jax.Array
    squared_norm: jax.Array
    trace: jax.Array
    weight: jax.Array


def accumulate_noise(
    piece_size: int, num_pieces: int, horizon: float, num_examples: int | None = None
) -> optax.GradientTransformation:
    """Returns a transformation that measures the gradient noise and leaves gradients as they are.

    Each call takes the gradient of the next piece of a batch. Place it before what sums the pieces,
    and before clipping: `optax.chain(accumulate_noise(16, 4, 1e4), optax.MultiSteps(tx, 4))`. After
    each `num_pieces` calls the averages advance; `noise_scale_of` reads them. The state has the
    same shapes for any number of pieces, so that a batch may grow. With one piece the noise is
    unknown, and the averages stay as they are.

    Args:
      piece_size: b, the examples of a piece.
      num_pieces: K, the pieces of a batch, all with the same parameters.
      horizon: the time constant of the averages, in examples.
      num_examples: as in `estimate`.

    Raises:
      ValueError: for an argument below 1.
    """
    given = {"piece_size": piece_size, "num_pieces": num_pieces, "horizon": horizon}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
    batch_size = piece_size * num_pieces

    def init(params: Any) -> NoiseState:
        zero = jnp.zeros((), jnp.float32)
        return NoiseState(_zeros(params), zero, jnp.zeros((), jnp.int32), zero, zero, zero)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, NoiseState]:
        del params
        if num_pieces == 1:
            return updates, state
        total = jax.tree.map(jnp.add, state.total, updates)
        part = state._replace(
            total=total, squares=state.squares + _squared_norm(updates), count=state.count + 1
        )
        batch = _squared_norm(total) / num_pieces**2
        found = estimate(part.squares / num_pieces, batch, piece_size, batch_size, num_examples)
        decay = jnp.exp(-batch_size / horizon)
        sums = (state.squared_norm, state.trace, state.weight)
        new = [decay * a + (1 - decay) * x for a, x in zip(sums, (*found, 1.0), strict=True)]
        whole = NoiseState(*jax.tree.map(jnp.zeros_like, part[:3]), *new)
        is_whole = part.count == num_pieces
        return updates, jax.tree.map(lambda a, b: jnp.where(is_whole, a, b), whole, part)

    return optax.GradientTransformation(init, update)


def noise_scale_of(opt_state: Any) -> float | None:
    """Returns B_simple in examples from an optimizer's state; None while it is unknown.

    Args:
      opt_state: the state of `accumulate_noise`, or of a chain that contains it.

    Raises:
      ValueError: if there is no such state in it.
    """

    def is_noise(x: Any) -> bool:
        return isinstance(x, NoiseState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_noise) if is_noise(x)]
    if not found:
        raise ValueError("the optimizer has no accumulate_noise; add it to optax.chain")
    sums = (float(found[0].squared_norm), float(found[0].trace), float(found[0].weight))
    return NoiseAverage(1.0, *sums).noise_scale


def _layers(tree: Any) -> dict[str, list[jax.Array]]:
    """The arrays of each module, by its path with slashes."""
    layers: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        layers.setdefault(name, []).append(leaf)
    return layers


def _zeros(params: Any) -> Any:
    """Zeros in float32, to which gradients of any dtype are added."""
    return jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), params)


def _squared_norm(tree: Any, scale: Any = None) -> jax.Array:
    """The sum of squares of all entries in float32, times `scale` if there is one."""
    squares = jax.tree.map(lambda x: jnp.square(jnp.asarray(x, jnp.float32)), tree)
    if scale is not None:
        squares = jax.tree.map(jnp.multiply, squares, scale)
    return jnp.sum(jnp.stack([jnp.sum(x) for x in jax.tree.leaves(squares)]))


def _preconditioner(state: TrainState) -> Any:
    """1 / (sqrt(v) + 1e-8) of an optimizer that keeps second moments v as Adam does, else None.

    It must keep them for all parameters.

    v is not debiased: a factor that all parameters share cancels in the noise scale.
    """

    def is_adam(x: Any) -> bool:
        return isinstance(x, optax.ScaleByAdamState | ChangingAdamState)

    found = [x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x)]
    of_all = jax.tree.structure(state.params)
    moments = next((x.nu for x in found if jax.tree.structure(x.nu) == of_all), None)
    if moments is None:
        return None
    return jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + 1e-8), moments)
