"""The jumps, peaks and levels that `grow` finds in learning-rate curves."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
import pytest

from batchgrow.plan import Recipe, grow
from batchgrow.plan.curves import (
    Curve,
    constant,
    cosine,
    exponential,
    inverse_time,
    step,
    with_warmup,
)
from batchgrow.plan.descent import NUM_SAMPLES, Descent, find_descent


def look(curve: Callable[[float], Any], num_examples: int, num_epochs: float) -> Descent:
    """The descent of a curve that does not say where it jumps."""
    return find_descent(Recipe(1, 0.0, lambda epoch: curve(epoch), num_examples, num_epochs))


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

    curve = Recipe(1, 0.0, lambda epoch: staircase(round(epoch * 1000)), 1000, 1000)
    assert find_descent(curve).jumps == (500_001, 500_040, 500_077, 999_990)


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
    found = find_descent(Recipe(1, 0.0, restarts, 100, 4))
    assert [found.ceiling(n) for n in (0, 99, 100, 199, 200, 299, 300)] == pytest.approx(
        [4.0, 3.505, 3.0, 3.0, 3.0, 2.505, 2.0]
    )


@pytest.mark.parametrize("warmup_epochs", [0.001, 1.234])
def test_the_peak_is_found_where_the_warmup_starts_high(warmup_epochs: float) -> None:
    curve = with_warmup(cosine(0.1, 90), warmup_epochs, 0.0999)
    assert look(curve, 1_281_167, 90).ceiling(0) == pytest.approx(curve(warmup_epochs), rel=1e-7)


def test_growths_are_exact_to_one_example() -> None:
    recipe = Recipe(1, 0.0, lambda epoch: 1 - epoch / 8, num_examples=1_000_004, num_epochs=8)
    starts = [segment.nominal_start_examples for segment in grow(recipe, max_batch_size=8).segments]
    assert starts == [0, 4 * 1_000_004, 6 * 1_000_004, 7 * 1_000_004]
    # 2 to 0 and up to 1 again: the batch may double once, where the curve reaches 1.
    there_and_back = Recipe(30, 0.0, lambda epoch: abs(2 - epoch), num_examples=1000, num_epochs=3)
    segments = grow(there_and_back, max_batch_size=240, ladder=4 / 3).segments
    assert segments[1].nominal_start_examples == 500
    assert grow(there_and_back, max_batch_size=240).segments[1].nominal_start_examples == 1000


def test_a_long_curve_is_evaluated_few_times() -> None:
    epochs = []

    def curve(epoch: float) -> float:
        epochs.append(epoch)
        return with_warmup(cosine(0.1, 90), 5)(epoch)

    grow(Recipe(256, 0.9, Curve(curve, ()), num_examples=1_281_167, num_epochs=90))
    assert len(epochs) < 2000
    grow(Recipe(256, 0.9, curve, num_examples=1_281_167, num_epochs=90))
    assert len(epochs) < 10_000


def test_a_run_of_one_example_has_a_descent() -> None:
    found = look(constant(0.1), 1, 1)
    assert (found.positions.tolist(), found.ceilings.tolist(), found.jumps) == ([0], [0.1], ())
