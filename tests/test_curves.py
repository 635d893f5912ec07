"""Learning-rate curves."""

import math
from collections.abc import Callable

import numpy as np
import optax
import pytest

from batchgrow.plan.curves import (
    Curve,
    constant,
    cosine,
    evaluate,
    exponential,
    inverse_time,
    polynomial,
    step,
    with_warmup,
    wsd,
)

EPOCHS = (0.0, 0.5, 3.0, 29.999, 30.0, 59.5, 60.0, 75.3, 89.99)


@pytest.mark.parametrize(
    ("curve", "closed_form"),
    [
        (constant(0.1), lambda t: 0.1),
        (step(0.1, (30, 60), 0.2), lambda t: 0.1 if t < 30 else 0.02 if t < 60 else 0.004),
        (exponential(0.1, 0.5, 10), lambda t: 0.1 * 2 ** (-t / 10)),
        (exponential(0.1, 0.5), lambda t: 0.1 * 2**-t),
        (inverse_time(0.1, 2.0), lambda t: 0.1 / (1 + 2 * t)),
        (inverse_time(0.1, 2.0, 10), lambda t: 0.1 / (1 + t / 5)),
        (polynomial(0.1, 60, 2.0, 0.01), lambda t: 0.01 + 0.09 * max(1 - t / 60, 0) ** 2),
        (wsd(0.1, 60, 30, 2.0), lambda t: 0.1 * min(max(60 - t, 0) / 30, 1) ** 2),
        (cosine(0.1, 60, 0.01), lambda t: 0.055 + 0.045 * math.cos(math.pi * min(t / 60, 1))),
        (with_warmup(constant(3.2), 5, 0.1), lambda t: min(0.1 + 3.1 * t / 5, 3.2)),
        (with_warmup(cosine(0.1, 90), 0), lambda t: 0.05 * (1 + math.cos(math.pi * t / 90))),
    ],
)
def test_closed_forms(curve: Curve, closed_form: Callable[[float], float]) -> None:
    assert [curve(t) for t in EPOCHS] == pytest.approx([closed_form(t) for t in EPOCHS])


@pytest.mark.parametrize(
    ("curve", "schedule"),
    [
        (step(3.0, (30, 60), 0.1), optax.piecewise_constant_schedule(3.0, {30: 0.1, 60: 0.1})),
        (exponential(0.1, 0.5, 10), optax.exponential_decay(0.1, 10, 0.5)),
        (cosine(0.1, 90, 0.001), optax.cosine_decay_schedule(0.1, 90, alpha=0.01)),
        (with_warmup(constant(3.2), 5, 0.1), optax.linear_schedule(0.1, 3.2, 5)),
    ],
)
def test_same_as_optax_counting_epochs(curve: Curve, schedule: optax.Schedule) -> None:
    expected = [float(schedule(t)) for t in EPOCHS]
    assert [curve(t) for t in EPOCHS] == pytest.approx(expected, rel=1e-4)


def test_warmup_keeps_the_jumps_after_it_and_no_others() -> None:
    curve = step(1.0, (2, 5, 9), 0.1)
    warmed = with_warmup(curve, 5, 0.5)
    assert warmed.boundaries_epochs == (9,)
    assert [warmed(t) for t in (0, 2.5, 5, 9)] == pytest.approx([0.5, 0.255, 0.01, 0.001])
    assert with_warmup(lambda epoch: 0.1, 5).boundaries_epochs is None


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: constant(-0.1), "learning_rate=-0.1"),
        (lambda: constant(math.nan), "learning_rate=nan"),
        (lambda: step(0.1, (60, 30), 0.2), "boundaries_epochs"),
        (lambda: step(0.1, (0, 30), 0.2), "boundaries_epochs"),
        (lambda: step(0.1, (30,), 0.0), "factor"),
        (lambda: exponential(0.1, -1.0), "decay_rate"),
        (lambda: inverse_time(0.1, 1.0, 0), "transition_epochs"),
        (lambda: cosine(0.1, 0), "num_epochs"),
        (lambda: cosine(0.1, 9, -1), "final_learning_rate"),
        (lambda: with_warmup(constant(0.1), -1), "warmup_epochs"),
        (lambda: with_warmup(constant(0.1), 5, math.inf), "initial_learning_rate"),
    ],
)
def test_curves_name_the_wrong_argument(make: Callable[[], Curve], field: str) -> None:
    with pytest.raises(ValueError, match=field) as error:
        make()
    assert "\n" not in str(error.value)


def test_evaluate_takes_curves_with_and_without_on_array() -> None:
    epochs = np.array([0.0, 1.5, 3.0])
    assert evaluate(cosine(0.1, 3), epochs).tolist() == [cosine(0.1, 3)(t) for t in epochs]
    assert evaluate(lambda epoch: np.float32(epoch), epochs).tolist() == [0.0, 1.5, 3.0]
    at_once = Curve(lambda epoch: 1 / 0, on_array=lambda epochs: 2 * epochs)
    assert evaluate(at_once, epochs).tolist() == [0.0, 3.0, 6.0]
    assert evaluate(cosine(0.1, 3), epochs[:0]).shape == (0,)
