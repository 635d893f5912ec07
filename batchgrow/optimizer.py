"""The optimizers as optax chains, without the learning rate.

Every chain turns gradients into a direction d; `step.update` then sets w <- w - learning_rate * d.
Momentum therefore accumulates gradients and never learning rates (form (9) of Goyal et al. 2017;
Smith et al. 2018, Sec. 4), and nothing has to be corrected when the rate changes. L2 is coupled: it
is added to the gradient, enters the momentum and scales with the learning rate. The decay of AdamW
is decoupled: learning_rate * weight_decay * w is subtracted beside Adam's own step.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

Params = Any
Mask = Callable[[Params], Any]

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "lars", "lamb")
DECAY_ON = ("all", "kernels", "matrices")


def uses_momentum(name: str) -> bool:
    """Whether the optimizer `name` averages gradients with the recipe's momentum."""
    return name not in ("sgd", "rmsprop", "adagrad")


def make_optimizer(
    name: str,
    *,
    momentum: float,
    weight_decay: float,
    decay_on: str = "all",
    b2: float = 0.999,
    epsilon: float = 1e-8,
    trust_coefficient: float = 0.001,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """The chain from gradients to the direction that the learning rate scales.

    Args:
      name: one of `OPTIMIZERS`.
      momentum: m of A <- m A + g for momentum, Nesterov and LARS; b1 for Adam, AdamW and LAMB.
      weight_decay: the coefficient lambda. lambda * w is added to the gradient; AdamW and LAMB, as
        published, add it after Adam's normalisation.
      decay_on: "all" parameters, only "kernels" (without norms, biases and embeddings), or only
        "matrices" (all parameters of two or more dimensions).
      b2, epsilon: of Adam, AdamW, RMSProp, AdaGrad and LAMB.
      trust_coefficient: of LARS.
      clip_norm: the mean gradient is scaled down to this global norm, before anything else; None
        for no clipping.

    Raises:
      ValueError: for an unknown `name` or `decay_on`, or a `clip_norm` that is not above 0.
    """
    if decay_on not in DECAY_ON:
        raise ValueError(f"unknown optimizer.decay_on {decay_on!r}; choose {', '.join(DECAY_ON)}")
    if clip_norm is None:
        return _direction(name, momentum, weight_decay, decay_on, b2, epsilon, trust_coefficient)
    if not clip_norm > 0:
        raise ValueError(f"optimizer.clip_norm {clip_norm} must be above 0, or None")
    chain = _direction(name, momentum, weight_decay, decay_on, b2, epsilon, trust_coefficient)
    return optax.chain(optax.clip_by_global_norm(clip_norm), chain)


def _direction(
    name: str,
    momentum: float,
    weight_decay: float,
    decay_on: str,
    b2: float,
    epsilon: float,
    trust_coefficient: float,
) -> optax.GradientTransformation:
    mask = {"all": None, "kernels": kernels, "matrices": matrices}[decay_on]
    decay = optax.add_decayed_weights(weight_decay, mask)
    adam = optax.scale_by_adam(b1=momentum, b2=b2, eps=epsilon)
    match name:
        case "sgd":
            return decay
        case "momentum":
            return optax.chain(decay, optax.trace(decay=momentum))
        case "nesterov":
            return optax.chain(decay, optax.trace(decay=momentum, nesterov=True))
        case "adam":
            return optax.chain(decay, adam)
        case "adamw":
            # Loshchilov & Hutter (2019), Alg. 2.
            return optax.chain(adam, decay)
        case "rmsprop":
            return optax.chain(decay, optax.scale_by_rms(decay=b2, eps=epsilon))
        case "adagrad":
            return optax.chain(decay, optax.scale_by_rss(eps=epsilon))
        case "lars":
            # You, Gitman & Ginsburg (2017): the trust ratio spares batch norm and biases.
            trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
            return optax.chain(decay, optax.masked(trust, kernels), optax.trace(decay=momentum))
        case "lamb":
            # You et al. (2020), Alg. 2.
            return optax.chain(adam, decay, optax.masked(optax.scale_by_trust_ratio(), kernels))
    raise ValueError(f"unknown optimizer.name {name!r}; choose {', '.join(OPTIMIZERS)}")


def kernels(params: Params) -> Any:
    """True for kernels of convolutions and dense layers, False for all other parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def matrices(params: Params) -> Any:
    """True for parameters of two or more dimensions: kernels and embeddings."""
    return jax.tree.map(lambda w: w.ndim >= 2, params)
