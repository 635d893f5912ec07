"""The recipe: a learning-rate curve with the batch size and momentum that it was found for.

A curve is any callable `epoch -> learning rate`; an `optax.Schedule` that counts epochs and a
lambda are curves too. Those made here (`constant`, `step`, `exponential`, `inverse_time`, `cosine`,
each `with_warmup` if wanted) also carry the epochs at which they jump; in other callables the jumps
are found by looking.

    >>> goyal = with_warmup(step(3.2, (30, 60, 80), 0.1), 5, initial_learning_rate=0.1)
    >>> [round(goyal(epoch), 4) for epoch in (0, 2.5, 5, 29.99, 30, 60, 80)]
    [0.1, 1.65, 3.2, 3.2, 0.32, 0.032, 0.0032]
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from numbers import Integral
from typing import SupportsFloat

LearningRateCurve = Callable[[float], SupportsFloat]  # of the epoch, which is a real number >= 0


@dataclass(frozen=True)
class Curve:
    """A learning-rate curve that knows where it jumps.

    Attributes:
      boundaries_epochs: where each new value starts to hold, in rising order; None if unknown, so
        that they are searched for. Bends (the end of a warm-up) are no jumps.
    """

    function: LearningRateCurve
    boundaries_epochs: tuple[float, ...] | None = None

    def __call__(self, epoch: float) -> float:
        return float(self.function(epoch))


def constant(learning_rate: float) -> Curve:
    """The same learning rate throughout."""
    _check_learning_rate("learning_rate", learning_rate)
    return Curve(lambda epoch: learning_rate, ())


def step(learning_rate: float, boundaries_epochs: Sequence[float], factor: float) -> Curve:
    """Multiplies the learning rate by `factor` at each boundary.

    WRN on CIFAR (Zagoruyko & Komodakis 2016): `step(0.1, (60, 120, 160), 0.2)`;
    ResNet-50 on ImageNet (Goyal et al. 2017): `step(3.2, (30, 60, 80), 0.1)`.
    """
    _check_learning_rate("learning_rate", learning_rate)
    _check_positive("factor", factor)
    boundaries = tuple(boundaries_epochs)
    if any(later <= earlier for earlier, later in pairwise((0, *boundaries))):
        raise ValueError(f"boundaries_epochs={boundaries} must be positive and in rising order")
    values = [learning_rate * factor**count for count in range(len(boundaries) + 1)]
    return Curve(lambda epoch: values[bisect_right(boundaries, epoch)], boundaries)


def exponential(learning_rate: float, decay_rate: float, transition_epochs: float = 1.0) -> Curve:
    """Multiplies the learning rate by `decay_rate` over every `transition_epochs`, smoothly."""
    _check_learning_rate("learning_rate", learning_rate)
    _check_positive("decay_rate", decay_rate)
    _check_positive("transition_epochs", transition_epochs)
    return Curve(lambda epoch: learning_rate * decay_rate ** (epoch / transition_epochs), ())


def inverse_time(learning_rate: float, decay_rate: float, transition_epochs: float = 1.0) -> Curve:
    """learning_rate / (1 + decay_rate * epoch / transition_epochs)."""
    _check_learning_rate("learning_rate", learning_rate)
    _check_positive("decay_rate", decay_rate)
    _check_positive("transition_epochs", transition_epochs)
    return Curve(lambda epoch: learning_rate / (1 + decay_rate * epoch / transition_epochs), ())


def cosine(learning_rate: float, num_epochs: float, final_learning_rate: float = 0.0) -> Curve:
    """Half a cosine from `learning_rate` to `final_learning_rate` over `num_epochs`, then flat."""
    _check_learning_rate("learning_rate", learning_rate)
    _check_learning_rate("final_learning_rate", final_learning_rate)
    _check_positive("num_epochs", num_epochs)
    half_height = (learning_rate - final_learning_rate) / 2

    def function(epoch: float) -> float:
        progress = min(epoch / num_epochs, 1.0)
        return final_learning_rate + half_height * (1 + math.cos(math.pi * progress))

    return Curve(function, ())


def polynomial(
    learning_rate: float, num_epochs: float, power: float, final_learning_rate: float = 0.0
) -> Curve:
    """(1 - epoch / num_epochs)^power from `learning_rate` to `final_learning_rate`, then flat."""
    _check_learning_rate("learning_rate", learning_rate)
    _check_learning_rate("final_learning_rate", final_learning_rate)
    _check_positive("num_epochs", num_epochs)
    _check_positive("power", power)
    height = learning_rate - final_learning_rate

    def function(epoch: float) -> float:
        return final_learning_rate + height * max(1 - epoch / num_epochs, 0.0) ** power

    return Curve(function, ())


def with_warmup(
    curve: LearningRateCurve, warmup_epochs: float, initial_learning_rate: float = 0.0
) -> Curve:
    """Rises linearly for `warmup_epochs`, then continues as `curve`.

    The rise ends at `curve(warmup_epochs)`; the first update has `initial_learning_rate` and each
    one after it a little more (gradual warm-up, Goyal et al. 2017). The curve is not
    delayed: its jumps stay at their epochs, and those inside the warm-up vanish.
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


# What a growth plan asks of a curve: where does it jump, and how high will it still be?

NUM_SAMPLES = 1024  # A bump narrower than this part of the run may go unseen.
SMALLEST_JUMP = 0.01  # Relative. A smaller change from one example to the next counts as smooth.
NEGLIGIBLE = 1e-6  # Of the highest learning rate: float32 curves end at 0 in steps of this size.


@dataclass(frozen=True)
class Descent:
    """How a learning rate falls over a run, as a function of the number of examples seen.

    Attributes:
      value: the learning rate when that many examples have been seen.
      positions: some numbers of examples, rising; both sides of each jump are among them.
      ceilings: for each of these, the highest learning rate from there to the end.
      jumps: the first example of each new value.
    """

    value: Callable[[int], float]
    positions: tuple[int, ...]
    ceilings: tuple[float, ...]
    jumps: tuple[int, ...]

    def ceiling(self, position: int) -> float:
        """The highest learning rate from this one of `positions` to the end."""
        return self.ceilings[bisect_left(self.positions, position)]

    def falls_to(self, level: float) -> int:
        """The first example from which on the learning rate is at most `level`, to one example.

        The level must be reached: at least the last of `ceilings`.
        """
        index = bisect_left(self.ceilings, -level, key=lambda ceiling: -ceiling)
        if index == 0:
            return self.positions[0]
        between = range(self.positions[index - 1] + 1, self.positions[index])
        return between.start + bisect_left(between, -level, key=lambda n: -self.value(n))


def find_descent(
    value: Callable[[int], float], num_positions: int, jumps: Sequence[int] | None = None
) -> Descent:
    """Looks at `value` over range(num_positions) for its jumps (unless given) and peaks."""
    num_steps = max(1, min(NUM_SAMPLES, num_positions - 1))
    grid = [(num_positions - 1) * index // num_steps for index in range(num_steps + 1)]
    known = {position: value(position) for position in grid}
    if jumps is None:
        jumps = _find_jumps(value, sorted(known.items()))
    for position in (n for jump in jumps for n in (jump - 1, jump)):
        known[position] = value(position)
    for peak in _find_peaks(value, sorted(known.items())):
        known[peak] = value(peak)
    positions = sorted(known)
    ceilings = accumulate((known[position] for position in reversed(positions)), max)
    return Descent(value, tuple(positions), tuple(ceilings)[::-1], tuple(jumps))


def _find_jumps(value: Callable[[int], float], samples: list[tuple[int, float]]) -> list[int]:
    """Halves each stretch over which the value changes until it is smooth or one example long."""
    first, last = samples[0][0], samples[-1][0]
    negligible = NEGLIGIBLE * max(height for _, height in samples)
    jumps = []
    stretches = list(pairwise(samples))
    while stretches:
        (low, at_low), (high, at_high) = stretches.pop()
        change = abs(at_high - at_low)
        if change <= max(SMALLEST_JUMP * max(at_low, at_high), negligible):
            continue
        if high - low > 1:
            middle = (low + high) // 2
            at_middle = (middle, value(middle))
            stretches += [((low, at_low), at_middle), (at_middle, (high, at_high))]
            continue
        # In a very short run a smooth curve changes as much, but its next change is like this one.
        before = abs(at_low - value(max(low - 1, first)))
        after = abs(value(min(high + 1, last)) - at_high)
        if change > 4 * max(before, after):
            jumps.append(high)
    return sorted(jumps)


def _find_peaks(value: Callable[[int], float], samples: list[tuple[int, float]]) -> list[int]:
    """Closes in on each local maximum that lies between samples (the end of a warm-up)."""
    peaks = []
    for (low, left), (_, middle), (high, right) in zip(
        samples, samples[1:], samples[2:], strict=False
    ):
        if middle < max(left, right) or middle == left == right:
            continue
        while high - low > 2:
            third = (high - low) // 3
            if value(low + third) < value(high - third):
                low += third
            else:
                high -= third
        peaks.append(max(range(low, high + 1), key=value))
    return peaks


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters that are known to work, with a fixed batch size.

    Attributes:
      batch_size: B0, of all devices together.
      momentum: m0; b1 of Adam.
      learning_rate: a callable of the epoch, which is a real number. It is called once an update.
        `from_optax` makes a recipe of a schedule that counts updates.
      num_examples: N, the size of the training set.
      num_epochs: need not be whole.

    Raises:
      ValueError: for a field that makes no recipe, with what it may be.
    """

    batch_size: int
    momentum: float
    learning_rate: LearningRateCurve
    num_examples: int
    num_epochs: float

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size)
        check_whole("num_examples", self.num_examples)
        check_momentum(self.momentum)
        _check_positive("num_epochs", self.num_epochs)
        if self.end_examples < 1:
            raise ValueError(
                f"num_epochs={self.num_epochs} of num_examples={self.num_examples} is less than "
                "one example: train for longer"
            )
        if not callable(self.learning_rate):
            raise ValueError(
                f"learning_rate={self.learning_rate!r} must be a function of the epoch, such as "
                "batchgrow.plan.curves.constant(0.1)"
            )

    @property
    def end_examples(self) -> int:
        """Where the recipe ends, in examples seen."""
        return round(self.num_epochs * self.num_examples)

    def learning_rate_at(self, examples_seen: int) -> float:
        """The recipe's own learning rate there; ValueError unless it is finite and 0 or more."""
        epoch = examples_seen / self.num_examples
        learning_rate = float(self.learning_rate(epoch))
        if not 0 <= learning_rate < math.inf:
            raise ValueError(
                f"learning_rate is {learning_rate} at epoch {epoch:g}: the curve must give finite "
                f"numbers, 0 or more, over all {self.num_epochs} epochs"
            )
        return learning_rate

    @cached_property
    def descent(self) -> Descent:
        """The learning rate as a function of examples seen; ValueError if it is 0 throughout."""
        end = self.end_examples
        jumps = getattr(self.learning_rate, "boundaries_epochs", None)
        if jumps is not None:
            examples = range(end)
            found = (bisect_left(examples, e, key=lambda n: n / self.num_examples) for e in jumps)
            jumps = sorted({jump for jump in found if 0 < jump < end})
        descent = find_descent(self.learning_rate_at, end, jumps)
        if descent.ceiling(0) == 0:
            raise ValueError("learning_rate is 0 at every epoch: nothing would be learned")
        return descent


def _check_learning_rate(name: str, learning_rate: float) -> None:
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"{name}={learning_rate} must be a finite number, 0 or more")


def _check_positive(name: str, number: float) -> None:
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={number} must be a finite number above 0")


def check_whole(name: str, number: int, least: int = 1) -> None:
    """Raises ValueError unless the number is a whole one, `least` or more."""
    if not isinstance(number, Integral) or number < least:
        raise ValueError(f"{name}={number} must be a whole number, {least} or more")


def check_momentum(momentum: float) -> None:
    """Raises ValueError unless momentum is in [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1")
