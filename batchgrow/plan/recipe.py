"""A recipe: the hyper-parameters that are known to work, and the noise scale that they set.

The noise scale of stochastic gradients (Smith & Le 2017; Smith, Kindermans, Ying & Le 2018,
Sec. 2-4) is, for N training examples and batch size B,

    g = learning_rate / (1 - momentum) * (N / B - 1)  ~  learning_rate * N / (B * (1 - momentum))

This is the noise scale of SGD. `batchgrow.plan.coupling` has the corresponding quantities of other
optimizers.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from batchgrow.plan.coupling import Coupling, coupling_of
from batchgrow.plan.curves import LearningRateCurve, evaluate


def noise_scale_exact(
    learning_rate: float, batch_size: int, momentum: float, num_examples: int
) -> float:
    """Returns learning_rate / (1 - momentum) * (N / B - 1), which is 0 where B = N."""
    return learning_rate / (1 - momentum) * (num_examples / batch_size - 1)


def accumulation_epochs(batch_size: int, momentum: float, num_examples: int) -> float:
    """Returns B / (N * (1 - momentum)), the epochs over which momentum averages gradients."""
    return batch_size / (num_examples * (1 - momentum))


MOST_EXAMPLES = 2**53  # Larger numbers are not exact as a float.
Momentum = float | LearningRateCurve  # A number, or a function of the epoch.


def momentum_at(momentum: Momentum, epochs: Any) -> Any:
    """Returns the momentum at an epoch, or at each of an array of epochs.

    Raises:
      ValueError: if it is not at least 0 and below 1.
    """
    if not callable(momentum):
        return momentum
    found = evaluate(momentum, np.atleast_1d(epochs))
    wrong = np.flatnonzero(~((found >= 0) & (found < 1)))
    if wrong.size:
        raise ValueError(
            f"momentum is {found[wrong[0]]} at epoch {np.atleast_1d(epochs)[wrong[0]]:g}: it must "
            "be at least 0 and below 1"
        )
    return found.reshape(np.shape(epochs))


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters that are known to work with a fixed batch size.

    Attributes:
      batch_size: B0, the examples of one update on all devices together.
      momentum: m0, at least 0 and below 1; or a function of the epoch that returns it, as in
        one-cycle recipes. For Adam, b1. For "sgd", which has none, 0.
      curve: the learning rate as a function of the epoch, which is a real number. Plans
        call it at many epochs, and a run calls it once for each update. `from_optax` makes a recipe
        from a schedule that counts updates.
      num_examples: N, the size of the training set.
      num_epochs: the length of the run. It may be a fraction.
      optimizer: the name of the optimizer, which determines how learning rate, momentum and batch
        size depend on each other: one of `batchgrow.plan.coupling.COUPLINGS`.
      tokens_per_example: the length of a sequence, so that plans also count tokens. None if
        examples are not sequences.

    Raises:
      ValueError: if a field is outside its range.
    """

    batch_size: int
    momentum: Momentum
    curve: LearningRateCurve
    num_examples: int
    num_epochs: float
    optimizer: str = "momentum"
    tokens_per_example: int | None = None

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size)
        check_whole("num_examples", self.num_examples)
        check_momentum(self.momentum, self.optimizer)
        if self.tokens_per_example is not None:
            check_whole("tokens_per_example", self.tokens_per_example)
        if not 0 < self.num_epochs < math.inf:
            raise ValueError(f"num_epochs={self.num_epochs} must be a finite number above 0")
        if self.num_epochs * self.num_examples > MOST_EXAMPLES:
            raise ValueError(
                f"num_epochs={self.num_epochs} of num_examples={self.num_examples} are more than "
                f"{MOST_EXAMPLES:,} examples: take fewer epochs"
            )
        if self.end_examples < 1:
            raise ValueError(
                f"num_epochs={self.num_epochs} of num_examples={self.num_examples} is less than "
                "one example: increase num_epochs"
            )
        if not callable(self.curve):
            raise ValueError(
                f"curve={self.curve!r} must be a function of the epoch, such as "
                "batchgrow.curves.constant(0.1)"
            )

    @property
    def coupling(self) -> Coupling:
        """How the optimizer's step depends on learning rate, momentum and batch size."""
        return coupling_of(self.optimizer)

    @property
    def end_examples(self) -> int:
        """The number of examples after which the recipe ends."""
        return round(self.num_epochs * self.num_examples)

    def momentum_at(self, examples_seen: int) -> float:
        """Returns the recipe's own momentum after `examples_seen` examples.

        Raises:
          ValueError: if it is not at least 0 and below 1.
        """
        return float(momentum_at(self.momentum, examples_seen / self.num_examples))

    def learning_rate_at(self, examples_seen: int) -> float:
        """Returns the recipe's own learning rate after `examples_seen` examples.

        Raises:
          ValueError: unless the learning rate is finite and 0 or more.
        """
        learning_rate = float(self.curve(examples_seen / self.num_examples))
        if not 0 <= learning_rate < math.inf:
            raise self._wrong_learning_rate(learning_rate, examples_seen)
        return learning_rate

    def learning_rates_at(self, examples_seen: np.ndarray) -> np.ndarray:
        """Returns `learning_rate_at` of each element: int64 (n,) to float64 (n,).

        Raises:
          ValueError: unless each learning rate is finite and 0 or more.
        """
        learning_rates = evaluate(self.curve, examples_seen / self.num_examples)
        wrong = np.flatnonzero(~((learning_rates >= 0) & (learning_rates < math.inf)))
        if wrong.size:
            first = int(wrong[0])
            raise self._wrong_learning_rate(float(learning_rates[first]), int(examples_seen[first]))
        return learning_rates

    def _wrong_learning_rate(self, learning_rate: float, examples_seen: int) -> ValueError:
        return ValueError(
            f"learning_rate is {learning_rate} at epoch {examples_seen / self.num_examples:g}: "
            f"the curve must be finite and 0 or more over all {self.num_epochs} epochs"
        )


def check_whole(name: str, number: int, least: int = 1) -> None:
    """Raises a ValueError unless `number` is a whole number from `least` to `MOST_EXAMPLES`."""
    if not isinstance(number, Integral) or number < least:
        raise ValueError(f"{name}={number} must be a whole number, {least} or more")
    if number > MOST_EXAMPLES:
        raise ValueError(f"{name}={number} must be at most {MOST_EXAMPLES:,}")


def check_momentum(momentum: Momentum, optimizer: str) -> None:
    """Raises a ValueError for a momentum outside of 0 to 1, or one that would not be used.

    The plan would count it, although the updates have none.
    """
    if not coupling_of(optimizer).uses_momentum and momentum != 0:
        shown = "a function" if callable(momentum) else momentum
        raise ValueError(
            f"momentum={shown}: the optimizer {optimizer!r} has no momentum; set it to 0, or take "
            "the optimizer 'momentum'"
        )
    if not callable(momentum) and not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1")
