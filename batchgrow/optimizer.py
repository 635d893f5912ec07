"""The optimizers as optax chains, without the learning rate.

Every chain turns gradients into a direction d; `step.update` then sets w <- w - learning_rate * d.
Momentum therefore accumulates gradients and never learning rates (form (9) of Goyal et al. 2017;
Smith et al. 2018, Sec. 4), and nothing has to be corrected when the rate changes. L2 is coupled: it
is added to the gradient, enters the momentum and scales with the learning rate. The decay of AdamW
is decoupled: learning_rate * weight_decay * w is subtracted beside Adam's own step. L1 adds l1 *
sign(w) in the same place.

What changes with the batch size is in `optimizer_by_batch`; its formulae are in
`batchgrow.plan.coupling`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from batchgrow.plan.coupling import (
    COUPLINGS,
    coupling_of,
    decay_at,
    epsilon_at,
    weight_decay_at,
)

Params = Any
Mask = Callable[[Params], Any]
# One optimizer, or a function of the batch size that returns it.
ByBatch = optax.GradientTransformation | Callable[[int], optax.GradientTransformation]

OPTIMIZERS = tuple(COUPLINGS)
DECAY_ON = ("all", "kernels", "matrices")


def optimizer_by_batch(
    name: str,
    *,
    batch_size: int,
    exponent: float,
    momentum: float,
    weight_decay: float,
    l1: float = 0.0,
    betas_follow_batch: bool = False,
    decay_follows_batch: bool = True,
    b1_floor: float = 0.5,
    b2_floor: float = 0.9,
    b2: float = 0.999,
    rmsprop_decay: float = 0.9,
    epsilon: float = 1e-8,
    **fields: Any,
) -> Callable[[int], optax.GradientTransformation]:
    """Returns the chain for each batch size. All chains have the same state.

    Args:
      name, momentum, weight_decay, l1, b2, rmsprop_decay, epsilon, fields: as in `make_optimizer`,
        for the batch size of the recipe.
      batch_size: the batch size of the recipe.
      exponent: the exponent p of the plan, in learning rate ~ batch^p.
      betas_follow_batch: whether b1 and b2 of Adam, AdamW and LAMB and the decay rate of RMSProp
        keep their half-life in examples, and epsilon its proportion to the second moment.
      decay_follows_batch: whether decoupled weight decay and L1 keep their effect per example.
      b1_floor: b1 and the decay rate of RMSProp do not fall below this.
      b2_floor: b2 does not fall below this.

    Raises:
      ValueError: if betas_follow_batch is set and the momentum changes during the run.
    """
    coupling = coupling_of(name)
    follows = betas_follow_batch and coupling.noise == "diffusion" and not coupling.sums_momentum
    if follows and fields.get("changing_momentum"):
        raise ValueError(
            "optimizer.betas_follow_batch: the momentum changes by the recipe or the plan, and b1 "
            "cannot follow the batch too; use one of them"
        )

    def at(size: int) -> optax.GradientTransformation:
        growth = size / batch_size
        follow = decay_at if follows else _constant
        decay, sparsity = weight_decay, l1
        if decay_follows_batch and coupling.decoupled_decay:
            decay, sparsity = (weight_decay_at(x, growth, exponent) for x in (decay, sparsity))
        return make_optimizer(
            name,
            momentum=follow(momentum, growth, b1_floor),
            weight_decay=decay,
            l1=sparsity,
            b2=follow(b2, growth, b2_floor),
            rmsprop_decay=follow(rmsprop_decay, growth, b1_floor),
            epsilon=epsilon_at(epsilon, growth) if follows else epsilon,
            changing_betas=follows,
            **fields,
        )

    return at


def _constant(decay: float, growth: float, floor: float) -> float:
    return decay


def make_optimizer(
    name: str,
    *,
    momentum: float,
    weight_decay: float,
    l1: float = 0.0,
    decay_on: str = "all",
    b2: float = 0.999,
    rmsprop_decay: float = 0.9,
    rmsprop_bias_correction: bool = False,
    adagrad_initial: float = 0.0,
    epsilon: float = 1e-8,
    trust_coefficient: float = 0.001,
    debias_momentum: bool = False,
    clip_norm: float | None = None,
    changing_betas: bool = False,
    changing_momentum: bool = False,
) -> optax.GradientTransformation:
    """Returns the chain that turns gradients into the direction that the learning rate scales.

    Args:
      name: one of `OPTIMIZERS`.
      momentum: m of A <- m A + g for momentum, Nesterov and LARS; b1 for Adam, AdamW and LAMB.
      weight_decay: the coefficient lambda. lambda * w is added to the gradient; AdamW and LAMB, as
        published, add it after Adam's normalisation.
      l1: the coefficient of L1. l1 * sign(w), with sign(0) = 0, is added where lambda * w is. It
        makes weights small, but seldom exactly 0.
      decay_on: weight decay and L1 act on "all" parameters but the scale of a fixed classifier,
        only on "kernels" (without norms, biases and embeddings), or only on "matrices" (all
        parameters of two or more dimensions).
      b2: the decay rate of the second moment of Adam, AdamW and LAMB.
      rmsprop_decay: the factor of the mean square of RMSProp per update.
      rmsprop_bias_correction: whether the mean square of RMSProp is divided by 1 - decay^t. Without
        it, as published, the first update is 1 / sqrt(1 - decay) times as large as later ones.
      adagrad_initial: the sum of squares of AdaGrad before the first update.
      epsilon: added to the root by Adam, AdamW, LAMB, RMSProp and AdaGrad.
      trust_coefficient: the trust coefficient of LARS.
      debias_momentum: whether momentum and Nesterov divide A by 1 - m^t, so that the first updates
        have their full effective rate of lr / (1 - m). So do those after a change of m.
      clip_norm: the mean gradient is scaled down to this global norm, before anything else; None
        for no clipping.
      changing_betas: whether b1, b2 and rmsprop_decay change during the run. The bias correction
        then uses the actual weights of the averages.
      changing_momentum: whether `update` gets the argument `momentum`, a scalar: m or b1 of this
        update.

    Raises:
      ValueError: for an unknown `name` or `decay_on`, a `clip_norm` that is not above 0, or an
        option that the optimizer does not have.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer.name {name!r}; choose {', '.join(OPTIMIZERS)}")
    if decay_on not in DECAY_ON:
        raise ValueError(f"unknown optimizer.decay_on {decay_on!r}; choose {', '.join(DECAY_ON)}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"optimizer.clip_norm {clip_norm} must be above 0, or None")
    if debias_momentum and name not in ("momentum", "nesterov"):
        raise ValueError(
            f"optimizer.debias_momentum: {name!r} does not need it; it is for momentum and nesterov"
        )
    decay: Any = optax.stateless(partial(_add_decay, weight_decay, l1))
    if decay_on != "all":
        decay = optax.masked(decay, {"kernels": kernels, "matrices": matrices}[decay_on])
    adam = optax.scale_by_adam(b1=momentum, b2=b2, eps=epsilon)
    if changing_betas or changing_momentum:
        adam = scale_by_changing_adam(momentum, b2, epsilon)
    match name:
        case "sgd":
            links = [decay]
        case "momentum" | "nesterov":
            trace = optax.trace(decay=momentum, nesterov=name == "nesterov")
            if debias_momentum or changing_momentum:
                trace = scale_by_changing_momentum(
                    momentum, nesterov=name == "nesterov", debias=debias_momentum
                )
            links = [decay, trace]
        case "adam":
            links = [decay, adam]
        case "adamw":
            # Loshchilov & Hutter (2019), Alg. 2.
            links = [adam, decay]
        case "rmsprop":
            rms = optax.scale_by_rms(
                rmsprop_decay, epsilon, eps_in_sqrt=False, bias_correction=rmsprop_bias_correction
            )
            if rmsprop_bias_correction and changing_betas:
                rms = scale_by_changing_adam(0.0, rmsprop_decay, epsilon)
            links = [decay, rms]
        case "adagrad":
            links = [decay, _scale_by_root_of_sum(adagrad_initial, epsilon)]
        case "lars":
            # You, Gitman & Ginsburg (2017), without a trust ratio of batch norm and biases.
            trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
            trace = optax.trace(decay=momentum)
            if changing_momentum:
                trace = scale_by_changing_momentum(momentum)
            links = [decay, optax.masked(trust, trusted), trace]
        case "lamb":
            # You et al. (2020), Alg. 2, without a trust ratio of norms and biases.
            links = [adam, decay, optax.masked(optax.scale_by_trust_ratio(), trusted)]
    chain = optax.chain(*links) if len(links) > 1 else links[0]
    return chain if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), chain)


def _add_decay(weight_decay: float, l1: float, updates: Any, params: Params) -> Any:
    """g + weight_decay * w + l1 * sign(w), for all but `models.fixed_classifier`'s scale."""

    def add(path: Any, g: jax.Array, w: jax.Array) -> jax.Array:
        if path and getattr(path[-1], "key", None) == "logit_scale":
            return g
        g = g + weight_decay * w
        return g + l1 * jnp.sign(w) if l1 else g

    return jax.tree_util.tree_map_with_path(add, updates, params)


def freeze(optimizer: ByBatch, frozen: Mask) -> ByBatch:
    """Returns the optimizer, with a direction of zero for the frozen parameters.

    Args:
      optimizer: a chain, or a function of the batch size that returns one.
      frozen: a function of the parameters that returns a tree of the same structure, with True for
        each parameter that is frozen.
    """

    def frozen_in(chain: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(chain, optax.masked(optax.set_to_zero(), frozen))

    if isinstance(optimizer, optax.GradientTransformation):
        return frozen_in(optimizer)
    return lambda batch_size: frozen_in(optimizer(batch_size))


class ChangingAdamState(NamedTuple):
    """The averages of gradients and their squares, and the weight of the initial zeros in each."""

    mu: Any
    nu: Any
    zeros_in_mu: jax.Array
    zeros_in_nu: jax.Array


def scale_by_changing_adam(
    b1: float, b2: float, epsilon: float
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction for b1 and b2 that may change during the run.

    The argument `momentum` of `update`, if it gets one, takes the place of b1.

    The averages start at zero. After decay rates b(1), ..., b(t) their weights sum to
    1 - b(1) ... b(t), which replaces Adam's 1 - b^t.
    """

    def init(params: Params) -> ChangingAdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        # Two arrays, because the state is donated.
        ones = (jnp.ones((), jnp.float32) for _ in range(2))
        return ChangingAdamState(mu, nu, *ones)

    def update(
        updates: Any, state: Any, params: Any = None, *, momentum: Any = b1, **_: Any
    ) -> Any:
        b1 = momentum
        mu = jax.tree.map(lambda a, g: b1 * a + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda a, g: b2 * a + (1 - b2) * g**2, state.nu, updates)
        new = ChangingAdamState(mu, nu, b1 * state.zeros_in_mu, b2 * state.zeros_in_nu)
        of_mu, of_nu = 1 - new.zeros_in_mu, 1 - new.zeros_in_nu
        direction = jax.tree.map(lambda m, v: m / of_mu / (jnp.sqrt(v / of_nu) + epsilon), mu, nu)
        return direction, new

    return optax.GradientTransformationExtraArgs(init, update)


class ChangingTraceState(NamedTuple):
    """A, and the sum of the weights of all gradients in it."""

    trace: Any
    weight: jax.Array


def scale_by_changing_momentum(
    momentum: float, *, nesterov: bool = False, debias: bool = False
) -> optax.GradientTransformationExtraArgs:
    """A <- m A + g for a momentum that may change during the run.

    The weights of the gradients in A sum to s <- m s + 1, from s = 0. With `debias` the direction
    is divided by s (1 - m), so that a constant gradient gives g / (1 - m) at every update: at the
    start, where s (1 - m) = 1 - m^t, and after a change of m.

    Args:
      momentum: m where `update` gets no argument `momentum`.
      nesterov: whether the direction is g + m A, and its weights sum to 1 + m s.
      debias: see above.
    """

    def init(params: Params) -> ChangingTraceState:
        return ChangingTraceState(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))

    def update(
        updates: Any, state: Any, params: Any = None, *, momentum: Any = momentum, **_: Any
    ) -> Any:
        trace = jax.tree.map(lambda a, g: momentum * a + g, state.trace, updates)
        weight = momentum * state.weight + 1
        new, direction = ChangingTraceState(trace, weight), trace
        if nesterov:
            direction = jax.tree.map(lambda a, g: g + momentum * a, trace, updates)
            weight = 1 + momentum * weight
        if debias:
            direction = jax.tree.map(lambda d: d / (weight * (1 - momentum)), direction)
        return direction, new

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_root_of_sum(initial: float, epsilon: float) -> optax.GradientTransformation:
    """g / (epsilon + sqrt(initial + sum of g^2)), AdaGrad (Duchi, Hazan & Singer 2011, Fig. 1)."""

    def init(params: Params) -> Any:
        return jax.tree.map(lambda w: jnp.full_like(w, initial), params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        sums = jax.tree.map(lambda s, g: s + g**2, state, updates)
        direction = jax.tree.map(lambda s, g: g / (epsilon + jnp.sqrt(s)), sums, updates)
        return direction, sums

    return optax.GradientTransformation(init, update)


def kernels(params: Params) -> Any:
    """True for kernels of convolutions and dense layers, False for all other parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def matrices(params: Params) -> Any:
    """True for parameters of two or more dimensions: kernels and embeddings."""
    return jax.tree.map(lambda w: w.ndim >= 2, params)


def trusted(params: Params) -> Any:
    """True for `matrices` without biases and scales, which have two dimensions in some layers."""

    def is_trusted(path: Any, w: jax.Array) -> bool:
        name = getattr(path[-1], "key", None) if path else None
        return w.ndim >= 2 and name not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_trusted, params)
