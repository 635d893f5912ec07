"""Learning-rate curves: the learning rate as a function of the epoch.

A curve is any callable that takes an epoch and returns a learning rate, such as a lambda or an
`optax.Schedule` that counts epochs. The curves of this file also know the epochs at which they
jump. `grow` searches other callables for jumps.

    >>> goyal = with_warmup(step(3.2, (30, 60, 80), 0.1), 5, initial_learning_rate=0.1)
    >>> [round(goyal(epoch), 4) for epoch in (0, 2.5, 5, 29.99, 30, 60, 80)]
    [0.1, 1.65, 3.2, 3.2, 0.32, 0.032, 0.0032]
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import SupportsFloat

import numpy as np

LearningRateCurve = Callable[[float], SupportsFloat]  # The argument is the epoch, 0 or more.


@dataclass(frozen=True)
class Curve:
    """A learning-rate curve that knows where it jumps.

    Attributes:
      function: takes an epoch and returns a learning rate.
      boundaries_epochs: the epochs at which the curve jumps, in increasing order. The new value
        holds from the boundary on. None means unknown: `grow` then searches for the jumps. A bend,
        such as the end of a warm-up, is not a jump.
      on_array: optional, takes a float64 array of epochs, shape (n,), and returns their learning
        rates, shape (n,). They must equal those of `function`. It makes plans of slow functions
        fast.
    """

    function: LearningRateCurve
    boundaries_epochs: tuple[float, ...] | None = None
    on_array: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, epoch: float) -> float:
        return float(self.function(epoch))


def evaluate(curve: LearningRateCurve, epochs: np.ndarray) -> np.ndarray:
    """Returns the learning rate at each of `epochs`; both are float64 of shape (n,)."""
    on_array = getattr(curve, "on_array", None)
    if on_array is not None:
        return np.asarray(on_array(epochs), np.float64)
    return np.array([float(curve(epoch)) for epoch in epochs.tolist()], np.float64)


def constant(learning_rate: float) -> Curve:
    """Returns a curve that is `learning_rate` at every epoch.

    Raises:
      ValueError: if it is negative, infinite or NaN.
    """
    _check_learning_rate("learning_rate", learning_rate)
    return Curve(lambda epoch: learning_rate, ())


def step(learning_rate: float, boundaries_epochs: Sequence[float], factor: float) -> Curve:
    """Returns a curve that is multiplied by `factor` at each boundary.

    WRN on CIFAR (Zagoruyko & Komodakis 2016): `step(0.1, (60, 120, 160), 0.2)`;
    ResNet-50 on ImageNet (Goyal et al. 2017): `step(3.2, (30, 60, 80), 0.1)`.

    Raises:
      ValueError: for a number that is out of range, or boundaries that do not rise from above 0.
    """
    _check_learning_rate("learning_rate", learning_rate)
    _check_positive("factor", factor)
    boundaries = tuple(boundaries_epochs)
    if any(later <= earlier for earlier, later in pairwise((0, *boundaries))):
        raise ValueError(f"boundaries_epochs={boundaries} must be positive and in rising order")
    values = [learning_rate * factor**count for count in range(len(boundaries) + 1)]
    return Curve(lambda epoch: values[bisect_right(boundaries, epoch)], boundaries)


def exponential(learning_rate: float, decay_rate: float, transition_epochs: float = 1.0) -> Curve:
    """Returns the smooth curve learning_rate * decay_rate^(epoch / transition_epochs).

    Raises:
      ValueError: for a number that is out of range.
    """
    _check_learning_rate("learning_rate", learning_rate)
    _check_positive("decay_rate", decay_rate)
    _check_positive("transition_epochs", transition_epochs)
    return Curve(lambda epoch: learning_rate * decay_rate ** (epoch / transition_epochs), ())


def inverse_time(learning_rate: float, decay_rate: float, transition_epochs: float = 1.0) -> Curve:
    """Returns the curve learning_rate / (1 + decay_rate * epoch / transition_epochs).

    Raises:
      ValueError: for a number that is out of range.
    """
    _check_learning_rate("learning_rate", learning_rate)
    _check_positive("decay_rate", decay_rate)
    _check_positive("transition_epochs", transition_epochs)
    return Curve(lambda epoch: learning_rate / (1 + decay_rate * epoch / transition_epochs), ())


def cosine(
    learning_rate: float,
    num_epochs: float,
    final_learning_rate: float = 0.0,
    start_epochs: float = 0.0,
) -> Curve:
    """Returns a curve that decays from `learning_rate` to `final_learning_rate` as half a cosine.

    The decay starts at `start_epochs` and ends at `num_epochs`. Before and after that the curve is
    constant. Let a warm-up end at `start_epochs` for the schedule of nanoGPT.

    Raises:
      ValueError: for a number that is out of range, or a decay that starts after its end.
    """
    _check_learning_rate("learning_rate", learning_rate)
    _check_learning_rate("final_learning_rate", final_learning_rate)
    _check_positive("num_epochs", num_epochs)
    if not 0 <= start_epochs < num_epochs:
        raise ValueError(
            f"start_epochs={start_epochs} must be at least 0 and below num_epochs={num_epochs}"
        )
    half_height = (learning_rate - final_learning_rate) / 2

    def function(epoch: float) -> float:
        progress = min(max(epoch - start_epochs, 0.0) / (num_epochs - start_epochs), 1.0)
        return final_learning_rate + half_height * (1 + math.cos(math.pi * progress))

    return Curve(function, ())


def polynomial(
    learning_rate: float, num_epochs: float, power: float, final_learning_rate: float = 0.0
) -> Curve:
    """Returns a curve that decays from `learning_rate` to `final_learning_rate` as a power.

    The height above `final_learning_rate` is proportional to (1 - epoch / num_epochs)^power. After
    `num_epochs` the curve is constant.

    Raises:
      ValueError: for a number that is out of range.
    """
    _check_learning_rate("learning_rate", learning_rate)
    _check_learning_rate("final_learning_rate", final_learning_rate)
    _check_positive("num_epochs", num_epochs)
    _check_positive("power", power)
    height = learning_rate - final_learning_rate

    def function(epoch: float) -> float:
        return final_learning_rate + height * max(1 - epoch / num_epochs, 0.0) ** power

    return Curve(function, ())


def wsd(
    learning_rate: float,
    num_epochs: float,
    decay_epochs: float,
    power: float = 1.0,
    final_learning_rate: float = 0.0,
) -> Curve:
    """Returns a curve that is constant and decays at the end: warm-up-stable-decay, WSD.

    The last `decay_epochs` of `num_epochs` decay as in `polynomial`, with power 1 linearly. Add the
    warm-up with `with_warmup` (MiniCPM, Hu et al. 2024, arXiv 2404.06395).

    Raises:
      ValueError: for a number that is out of range, or a decay that is longer than the run.
    """
    if not 0 < decay_epochs <= num_epochs:
        raise ValueError(
            f"decay_epochs={decay_epochs} must be above 0 and at most num_epochs={num_epochs}"
        )
    decay = polynomial(learning_rate, decay_epochs, power, final_learning_rate)
    start = num_epochs - decay_epochs
    return Curve(lambda epoch: decay(max(0.0, epoch - start)), ())


# By name, as a config and the command choose them.
CURVES: dict[str, Callable[..., Curve]] = {
    function.__name__: function
    for function in (constant, step, exponential, inverse_time, cosine, polynomial, wsd)
}


def one_cycle(
    start: float, peak: float, num_epochs: float, peak_epochs: float, end: float | None = None
) -> Curve:
    """Returns a curve from `start` to `peak` to `end`, each way as half a cosine.

    The one-cycle policy (Smith 2018, arXiv 1803.09820), in the form of PyTorch's `OneCycleLR`: the
    learning rate rises to its peak and falls, and the momentum does the opposite:

        learning_rate = one_cycle(0.004, 0.1, num_epochs=30, peak_epochs=9, end=1e-5)
        momentum = one_cycle(0.95, 0.85, num_epochs=30, peak_epochs=9)

    Args:
      start: the value at epoch 0.
      peak: the value at `peak_epochs`, which may be the lowest.
      num_epochs: the epoch of `end`. From there on the curve is constant.
      peak_epochs: above 0 and below `num_epochs`.
      end: by default `start`.

    Raises:
      ValueError: for a number that is out of range.
    """
    end = start if end is None else end
    for name, value in (("start", start), ("peak", peak), ("end", end)):
        _check_learning_rate(name, value)
    if not 0 < peak_epochs < num_epochs < math.inf:
        raise ValueError(
            f"peak_epochs={peak_epochs} must be above 0 and below num_epochs={num_epochs}"
        )

    def function(epoch: float) -> float:
        if epoch < peak_epochs:
            first, last, progress = start, peak, epoch / peak_epochs
        else:
            progress = min((epoch - peak_epochs) / (num_epochs - peak_epochs), 1.0)
            first, last = peak, end
        return last + (first - last) / 2 * (1 + math.cos(math.pi * progress))

    return Curve(function, ())


def with_warmup(
    curve: LearningRateCurve, warmup_epochs: float, initial_learning_rate: float = 0.0
) -> Curve:
    """Returns a curve that rises linearly for `warmup_epochs` and then equals `curve`.

    The rise goes from `initial_learning_rate` at epoch 0 to `curve(warmup_epochs)` (gradual
    warm-up, Goyal et al. 2017). The warm-up replaces the start of the curve and does not delay it:
    jumps after the warm-up stay at their epochs, and jumps inside it disappear.

    Raises:
      ValueError: for a number that is out of range.
    """
    _check_learning_rate("initial_learning_rate", initial_learning_rate)
    if not 0 <= warmup_epochs < math.inf:
        raise ValueError(f"warmup_epochs={warmup_epochs} must be a finite number, 0 or more")
    rise = float(curve(warmup_epochs)) - initial_learning_rate

    def function(epoch: float) -> SupportsFloat:
        if epoch < warmup_epochs:
            return initial_learning_rate + rise * epoch / warmup_epochs
        return curve(epoch)

    boundaries = getattr(curve, "boundaries_epochs", None)
    if boundaries is not None:
        boundaries = tuple(epoch for epoch in boundaries if epoch > warmup_epochs)
    return Curve(function, boundaries)


def _check_learning_rate(name: str, learning_rate: float) -> None:
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"{name}={learning_rate} must be a finite number, 0 or more")


def _check_positive(name: str, number: float) -> None:
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={number} must be a finite number above 0")
