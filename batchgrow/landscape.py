"""The loss around a solution: sharpness, the spectrum of the Hessian, the loss along a line.

Everything is a function of one vector that holds all parameters. `Objective` evaluates it;
`objective_of` makes one of a task and data, in evaluation mode, so that batch norm uses its running
statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import linalg, optimize

from batchgrow.tasks import Task

Vector = Any  # float32 (parameters,)
REORTHOGONALISATIONS = 2  # once leaves errors of the size of the cancellation (Parlett 1998, 6.9)


@dataclass(frozen=True)
class Objective:
    """A loss as a function of the vector of all parameters.

    Attributes:
      value_and_gradient: returns the loss and its gradient, `(parameters,)`.
      hessian_vector: called with the parameters and a vector; returns the Hessian times the vector.
    """

    value_and_gradient: Callable[[Vector], tuple[jax.Array, Vector]]
    hessian_vector: Callable[[Vector, Vector], Vector]


CHUNK_SIZE = 500  # examples of one pass


def objective_of_function(loss: Callable[[Vector], jax.Array]) -> Objective:
    """Returns the objective of a differentiable function of one vector."""

    def hessian_vector(x: Vector, vector: Vector) -> Vector:
        return jax.jvp(jax.grad(loss), (x,), (vector,))[1]

    return Objective(jax.jit(jax.value_and_grad(loss)), jax.jit(hessian_vector))


def objective_of(
    task: Task, variables: Mapping[str, Any], examples: Any, chunk_size: int = CHUNK_SIZE
) -> tuple[Objective, Vector]:
    """Returns the mean loss over examples, and the vector of the parameters.

    Args:
      task: what was trained.
      variables: {"params": ..., and the other variables of the model}, which stay as they are.
      examples: a pytree of arrays `(examples, ...)`; those beyond a multiple of `chunk_size` are
        left out.
      chunk_size: examples of one pass.

    Raises:
      ValueError: if there are fewer examples than one chunk has.
    """
    others = {name: value for name, value in variables.items() if name != "params"}
    start, unravel = ravel_pytree(variables["params"])
    num_chunks = len(jax.tree.leaves(examples)[0]) // chunk_size
    if num_chunks < 1:
        raise ValueError(
            f"{len(jax.tree.leaves(examples)[0])} examples are less than a chunk of {chunk_size}; "
            "take more examples"
        )
    chunks = jax.tree.map(
        lambda x: jnp.asarray(x[: num_chunks * chunk_size]).reshape(
            num_chunks, chunk_size, *x.shape[1:]
        ),
        examples,
    )

    def loss_of(x: Vector, chunk: Any) -> jax.Array:
        outputs = task.loss({"params": unravel(x), **others}, chunk, None, train=False)
        return outputs.losses.mean()

    def mean(function: Callable[[Any], Any]) -> Any:
        """The mean of a function of a chunk, one chunk after another."""

        def add(total: Any, chunk: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(chunk)), None

        first = jax.tree.map(lambda x: x[0], chunks)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, first))
        total, _ = jax.lax.scan(add, zeros, chunks)
        return jax.tree.map(lambda x: x / num_chunks, total)

    def value_and_gradient(x: Vector) -> tuple[jax.Array, Vector]:
        return mean(lambda chunk: jax.value_and_grad(loss_of)(x, chunk))

    def hessian_vector(x: Vector, vector: Vector) -> Vector:
        def product(chunk: Any) -> Vector:
            return jax.jvp(lambda x: jax.grad(loss_of)(x, chunk), (x,), (vector,))[1]

        return mean(product)

    return Objective(jax.jit(value_and_gradient), jax.jit(hessian_vector)), start


def sharpness(
    objective: Objective, x: Vector, epsilon: float, *, max_iterations: int = 10, seed: int = 0
) -> float:
    """Returns the sharpness of Keskar et al. (2017), Sec. 2.2.2, in the full space (A = I).

    It is 100 (max f(x + y) - f(x)) / (1 + f(x)) over the box abs(y_i) <= epsilon (abs(x_i) + 1).
    The maximum is what L-BFGS-B finds within `max_iterations`. It starts at a random point of the
    box, because the gradient at a solution is almost 0.

    Args:
      objective: f.
      x: the solution, `(parameters,)`.
      epsilon: the size of the box, above 0: 1e-3 and 5e-4 in the paper.
      max_iterations: of L-BFGS-B; 10 in the paper.
      seed: of the random start.
    """
    centre = np.asarray(x, np.float64)
    radius: Any = epsilon * (np.abs(centre) + 1)
    best = at_solution = float(objective.value_and_gradient(x)[0])

    def negative(y: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        value, gradient = objective.value_and_gradient(jnp.asarray(centre + y, jnp.float32))
        best = max(best, float(value))
        return -float(value), -np.asarray(gradient, np.float64)

    optimize.minimize(
        negative,
        np.random.default_rng(seed).uniform(-radius, radius),
        jac=True,
        method="L-BFGS-B",
        bounds=optimize.Bounds(-radius, radius),
        options={"maxiter": max_iterations},
    )
    return 100 * (best - at_solution) / (1 + at_solution)


class Spectrum(NamedTuple):
    """What Lanczos found of a Hessian.

    Attributes:
      eigenvalues: float64 `(steps,)`, descending. The first ones approach the largest eigenvalues
        of the Hessian, the last ones the smallest.
      weights: float64 `(steps,)`: the share of the spectrum near each, by Gauss quadrature. They
        add up to 1.
    """

    eigenvalues: np.ndarray
    weights: np.ndarray

    def density(self, places: Sequence[float], width: float) -> np.ndarray:
        """Returns the spectral density at `places`, each eigenvalue as a Gaussian of `width`."""
        distance = (np.asarray(places)[:, None] - self.eigenvalues) / width
        return (np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))) @ self.weights


def spectrum(objective: Objective, x: Vector, num_steps: int = 30, seed: int = 0) -> Spectrum:
    """Returns the spectrum of the Hessian at x, by Lanczos with full reorthogonalisation.

    Args:
      objective: f.
      x: `(parameters,)`.
      num_steps: products of the Hessian with a vector, and vectors kept in memory.
      seed: of the random first vector.
    """
    dimension = x.shape[0]
    vector = np.random.default_rng(seed).standard_normal(dimension)
    vector /= np.linalg.norm(vector)
    basis = np.zeros((min(num_steps, dimension), dimension), np.float32)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(len(basis)):
        basis[step] = vector
        product = np.asarray(
            objective.hessian_vector(x, jnp.asarray(vector, jnp.float32)), np.float64
        )
        diagonal.append(float(product @ vector))
        for _ in range(REORTHOGONALISATIONS):
            product -= basis[: step + 1].T @ (basis[: step + 1] @ product)
        norm = float(np.linalg.norm(product))
        if norm <= 1e-5 * max(map(abs, diagonal)):  # The vectors span an invariant space.
            break
        beside.append(norm)
        vector = product / norm
    values, vectors = linalg.eigh_tridiagonal(diagonal, beside[: len(diagonal) - 1])
    return Spectrum(values[::-1], vectors[0, ::-1] ** 2)


def along_line(
    loss: Callable[[Any], float], start: Any, end: Any, places: Sequence[float]
) -> list[float]:
    """Returns a loss at (1 - a) start + a end for each a of `places`.

    Args:
      loss: takes a pytree such as `start`.
      start, end: pytrees of arrays, such as the variables of two solutions.
      places: 0 is `start`, 1 is `end`.
    """
    return [
        float(loss(jax.tree.map(lambda s, e, a=a: (1 - a) * s + a * e, start, end))) for a in places
    ]
