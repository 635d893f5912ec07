"""The optimizers as optax chains, with the learning rate left outside.

Every chain turns gradients into a direction d; `train_step` then sets w <- w - learning_rate * d.
Momentum therefore accumulates gradients and never learning rates (form (9) of Goyal et al. 2017;
Smith et al. 2018, Sec. 4), and nothing has to be corrected when the rate changes. L2 is coupled:
it is added to the gradient, enters the momentum and scales with the learning rate. A decoupled
decay would break the equivalence of a larger batch and a smaller learning rate.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

Params = Any
Mask = Callable[[Params], Any]

NAMES = ("sgd", "momentum", "nesterov", "adam", "rmsprop", "adagrad", "lars", "lamb")
DECAY_ON = ("all", "kernels")


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
) -> optax.GradientTransformation:
    """The chain from gradients to the direction that the learning rate scales.

    Args:
      name: one of `NAMES`.
      momentum: m of A <- m A + g for momentum, Nesterov and LARS; b1 for Adam and LAMB.
      weight_decay: L2 coefficient lambda; lambda * w is added to the gradient (LAMB, as published,
        adds it after Adam's normalisation).
      decay_on: "all" parameters, or only "kernels" (spares batch norm and biases).
      b2, epsilon: of Adam, RMSProp, AdaGrad and LAMB.
      trust_coefficient: of LARS.

    Raises:
      ValueError: for an unknown `name` or `decay_on`.
    """
    if decay_on not in DECAY_ON:
        raise ValueError(f"optimizer.decay_on {decay_on!r} is none of {', '.join(DECAY_ON)}")
    mask = kernels if decay_on == "kernels" else None
    l2 = optax.add_decayed_weights(weight_decay, mask)
    match name:
        case "sgd":
            return l2
        case "momentum":
            return optax.chain(l2, optax.trace(decay=momentum))
        case "nesterov":
            return optax.chain(l2, optax.trace(decay=momentum, nesterov=True))
        case "adam":
            return optax.chain(l2, optax.scale_by_adam(b1=momentum, b2=b2, eps=epsilon))
        case "rmsprop":
            return optax.chain(l2, optax.scale_by_rms(decay=b2, eps=epsilon))
        case "adagrad":
            return optax.chain(l2, optax.scale_by_rss(eps=epsilon))
        case "lars":
            # You, Gitman & Ginsburg (2017): the trust ratio spares batch norm and biases.
            trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
            return optax.chain(l2, optax.masked(trust, kernels), optax.trace(decay=momentum))
        case "lamb":
            # You et al. (2020), Alg. 2.
            adam = optax.scale_by_adam(b1=momentum, b2=b2, eps=epsilon)
            return optax.chain(adam, l2, optax.masked(optax.scale_by_trust_ratio(), kernels))
    raise ValueError(f"optimizer.name {name!r} is none of {', '.join(NAMES)}")


def kernels(params: Params) -> Any:
    """True for kernels of convolutions and dense layers, False for batch norm and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
