"""Learning-rate curves, what is found in them by looking, and the recipe's own checks."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
import pytest

from batchgrow.plan.curves import (
    NUM_SAMPLES,
    Curve,
    Descent,
    Recipe,
    constant,
    cosine,
    exponential,
    find_descent,
    inverse_time,
    step,
    with_warmup,
)

EPOCHS = (0.0, 0.5, 3.0, 29.999, 30.0, 59.5, 60.0, 75.3, 89.99)


@pytest.mark.parametrize(
    ("curve", "closed_form"),
    [
        (constant(0.1), lambda t: 0.1),
        (step(0.1, (30, 60), 0.2), lambda t: 0.1 if t < 30 else 0.02 if t < 60 else 0.004),
        (exponential(0.1, 0.5, 10), lambda t: 0.1 * 2 ** (-t / 10)),
        (inverse_time(0.1, 2.0), lambda t: 0.1 / (1 + 2 * t)),
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


def look(curve: Callable[[float], Any], num_examples: int, num_epochs: float) -> Descent:
    """The descent of a curve that does not say where it jumps."""
    return Recipe(1, 0.0, lambda epoch: curve(epoch), num_examples, num_epochs).descent


@pytest.mark.parametrize("num_examples", [10, 1437, 50_000, 1_281_167])
def test_jumps_are_found_to_one_example(num_examples: int) -> None:
    boundaries = (3, 10 / 3, 8.5)
    found = look(step(0.1, boundaries, 0.2), num_examples, 10).jumps
    assert found == tuple(math.ceil(round(epoch * num_examples, 6)) for epoch in boundaries)


def test_jumps_up_and_several_within_a_sample_are_found() -> None:
    heights = {0: 1.0, 500_001: 0.5, 500_040: 0.6, 500_077: 0.1, 999_990: 0.09}
    assert 1_000_000 // NUM_SAMPLES > 77

    def staircase(position: int) -> float:
        return heights[max(start for start in heights if start <= position)]

    assert find_descent(staircase, 1_000_000).jumps == (500_001, 500_040, 500_077, 999_990)


def test_jumps_are_found_on_a_slope() -> None:
    found = look(
        lambda epoch: exponential(0.1, 0.9)(epoch) * (0.9 if epoch >= 3.21 else 1), 1000, 9
    )
    assert found.jumps == (3210,)


@pytest.mark.parametrize("num_examples", [7, 1437, 1_281_167])
@pytest.mark.parametrize(
    "curve",
    [
        cosine(0.1, 30),
        with_warmup(cosine(0.1, 30), 2),
        exponential(0.1, 0.5),
        inverse_time(0.1, 3.0),
        lambda epoch: 0.1 * (1 - epoch / 30),
    ],
)
def test_smooth_curves_have_no_jumps(curve: Callable[[float], float], num_examples: int) -> None:
    assert look(curve, num_examples, 30).jumps == ()


def test_float32_curves_have_the_same_jumps() -> None:
    falls_to_zero = jax.jit(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 90))
    assert look(falls_to_zero, 1_281_167, 90).jumps == ()
    steps = jax.jit(optax.piecewise_constant_schedule(0.1, {30: 0.2, 60: 0.2}))
    assert look(steps, 50_000, 90).jumps == (1_500_000, 3_000_000)


@pytest.mark.parametrize("warmup_epochs", [0.001, 1.234, 17.0])
def test_the_peak_between_samples_is_found(warmup_epochs: float) -> None:
    curve = with_warmup(cosine(0.1, 90), warmup_epochs)
    found = look(curve, 1_281_167, 90)
    assert found.ceiling(0) == pytest.approx(curve(warmup_epochs), rel=1e-5)


def test_ceiling_is_the_highest_still_to_come() -> None:
    restarts = Curve(lambda t: [4.0, 1.0, 3.0, 2.0][int(t)] - t % 1 / 2, (1.0, 2.0, 3.0))
    found = Recipe(1, 0.0, restarts, 100, 4).descent
    assert [found.ceiling(n) for n in (0, 99, 100, 199, 200, 299, 300)] == pytest.approx(
        [4.0, 3.505, 3.0, 3.0, 3.0, 2.505, 2.0]
    )


def test_falls_to_is_exact() -> None:
    found = look(lambda epoch: 1 - epoch / 8, 1_000_004, 8)
    assert found.falls_to(0.25) == 6 * 1_000_004
    assert found.falls_to(1.0) == 0
    there_and_back = look(lambda epoch: abs(2 - epoch), 1000, 3)  # 2 to 0 and up to 1 again
    assert there_and_back.falls_to(1.5) == 500
    assert there_and_back.falls_to(1.0) == 1000


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = dict(
        batch_size=128, momentum=0.9, learning_rate=constant(0.1), num_examples=1000, num_epochs=3
    )
    return Recipe(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 12.5}, "batch_size=12.5"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"num_examples": -5}, "num_examples=-5"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"num_epochs": math.inf}, "num_epochs=inf"),
        ({"num_epochs": 1e-5}, "num_epochs=1e-05 of num_examples=1000"),
        ({"learning_rate": 0.1}, "learning_rate=0.1 must be a function"),
    ],
)
def test_recipe_names_the_wrong_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        recipe(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (lambda epoch: 0.1 - epoch / 20, "learning_rate is -.* at epoch 2"),
        (lambda epoch: math.nan if epoch > 1 else 0.1, "learning_rate is nan at epoch 1"),
        (lambda epoch: math.inf, "learning_rate is inf at epoch 0"),
        (constant(0.0), "learning_rate is 0 at every epoch"),
    ],
)
def test_wrong_learning_rates_are_told(curve: Callable[[float], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = recipe(learning_rate=curve).descent


def test_a_run_of_one_example_has_a_descent() -> None:
    assert recipe(num_examples=1, num_epochs=1).descent.positions == (0,)
