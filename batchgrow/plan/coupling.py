"""How the step of each optimizer depends on learning rate, momentum and batch size.

A plan keeps an optimizer's effective step equal to that of the recipe. For batch size B and N
training examples this is

- `A <- m A + g`, `w <- w - lr A` (SGD, momentum, Nesterov): the momentum sums gradients, so the
  effective rate is lr / (1 - m). Noise moves a parameter by an amount proportional to the noise
  scale lr N / (B (1 - m)) (Smith & Le 2017). lr ~ B keeps it.
- Normalised steps (Adam, AdamW, RMSProp, LAMB, LARS): where noise dominates the gradient, the
  second moment is proportional to 1 / B, so a step has the length lr for every B. The N / B
  updates of an epoch move a parameter by lr sqrt(N / B) at random, and by an amount proportional to
  lr sqrt(N / B) along the mean gradient. lr ~ sqrt(B) keeps both (Malladi et al. 2022, arXiv
  2205.10287). The first moment of Adam and LAMB is an average, so b1 does not change the rate.
"""

import math
from dataclasses import dataclass


def noise_scale(learning_rate: float, batch_size: int, momentum: float, num_examples: int) -> float:
    """Returns learning_rate / (1 - momentum) * N / B, the form that a plan keeps equal."""
    return learning_rate * (1 / (1 - momentum)) * num_examples / batch_size


@dataclass(frozen=True)
class Coupling:
    """What a plan must know about an optimizer.

    Attributes:
      sums_momentum: whether the momentum sums gradients, so that the effective rate is
        lr / (1 - m). False: it averages them, or there is no momentum.
      exponent: p in lr ~ B^p that keeps the effective step. None if no single p does.
      noise: the name of what p keeps: "noise_scale", lr N / (B (1 - m)); "diffusion",
        lr sqrt(N / B), times 1 / (1 - m) with a momentum that sums; None if it has no formula.
      decoupled_decay: whether the weight decay is subtracted beside the normalised step.
      uses_momentum: whether the optimizer has a momentum or b1.
    """

    sums_momentum: bool
    exponent: float | None
    noise: str | None
    decoupled_decay: bool = False
    uses_momentum: bool = True

    def gain(self, momentum: float) -> float:
        """Returns the effective learning rate divided by the learning rate."""
        return 1 / (1 - momentum) if self.sums_momentum else 1.0

    def measure(
        self, learning_rate: float, batch_size: int, momentum: float, num_examples: int
    ) -> float | None:
        """Returns the quantity `noise` of an update, or None if it has no formula."""
        match self.noise:
            case "noise_scale":
                return noise_scale(learning_rate, batch_size, momentum, num_examples)
            case "diffusion":
                rate = learning_rate * self.gain(momentum)
                return rate * math.sqrt(num_examples / batch_size)
        return None


COUPLINGS = {
    "sgd": Coupling(True, 1.0, "noise_scale", uses_momentum=False),
    "momentum": Coupling(True, 1.0, "noise_scale"),
    "nesterov": Coupling(True, 1.0, "noise_scale"),
    "adam": Coupling(False, 0.5, "diffusion"),
    "adamw": Coupling(False, 0.5, "diffusion", decoupled_decay=True),
    "rmsprop": Coupling(False, 0.5, "diffusion", uses_momentum=False),
    # The sum of squares of AdaGrad remembers all earlier batch sizes.
    "adagrad": Coupling(False, None, None, uses_momentum=False),
    # The momentum sums steps of length lr |w|. The authors scale lr ~ B, where the gradient
    # dominates; where noise dominates it is sqrt(B).
    "lars": Coupling(True, None, "diffusion"),
    # sqrt(B), as its authors scale it. The decay is inside of the trust ratio.
    "lamb": Coupling(False, 0.5, "diffusion"),
}


# For an optimizer of your own: a plan that changes the batch size needs an exponent.
YOUR_OWN = Coupling(False, None, None)


def coupling_of(optimizer: str) -> Coupling:
    """Returns the coupling of the optimizer with this name; `module:function` is one of your own.

    Raises:
      ValueError: for an unknown name.
    """
    if ":" in optimizer:
        return YOUR_OWN
    if optimizer not in COUPLINGS:
        raise ValueError(f"unknown optimizer {optimizer!r}; choose {', '.join(COUPLINGS)}")
    return COUPLINGS[optimizer]


def decay_at(decay: float, growth: float, floor: float = 0.0) -> float:
    """Returns the decay rate per update that keeps its half-life in examples.

    An average with the factor b per update halves in B log(1/2) / log(b) examples. This stays if
    b becomes b^growth for a batch that is `growth` times as large (Marek et al. 2025, arXiv
    2507.07101, for b2). To first order it is 1 - growth (1 - b), the rule of Malladi et al. (2022)
    for b1 and b2.

    Args:
      decay: b, 0 to 1.
      growth: B / B0.
      floor: the result is not less than this, unless `decay` is. An average needs several updates.
    """
    return max(decay**growth, min(decay, floor))


def weight_decay_at(weight_decay: float, growth: float, exponent: float) -> float:
    """Returns the decoupled weight decay that keeps its time constant in examples.

    Each update multiplies the weights by 1 - lr lambda. The time constant is B / (lr lambda)
    examples (Wang & Aitchison 2024, arXiv 2405.13698, in epochs). With lr ~ B^exponent it stays if
    lambda ~ B^(1 - exponent).
    """
    return weight_decay * growth ** (1 - exponent)


def epsilon_at(epsilon: float, growth: float) -> float:
    """Returns the epsilon that stays in proportion to the root of the second moment.

    Where noise dominates, the root is proportional to 1 / sqrt(B) (Malladi et al. 2022).
    """
    return epsilon / math.sqrt(growth)
