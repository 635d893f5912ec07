"""Recipes: their checks, their learning rates, and the noise scale."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchgrow.plan import Recipe, decay, grow, noise_scale
from batchgrow.plan.curves import constant, cosine
from batchgrow.plan.recipe import accumulation_epochs, noise_scale_exact


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = dict(
        batch_size=128, momentum=0.9, curve=constant(0.1), num_examples=1000, num_epochs=3
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
        ({"curve": 0.1}, "curve=0.1 must be a function"),
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
def test_wrong_learning_rates_are_refused(curve: Callable[[float], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow(recipe(curve=curve))
    with pytest.raises(ValueError, match=message):
        decay(recipe(curve=curve))


def test_learning_rates_are_those_of_the_curve() -> None:
    of_cosine = recipe(curve=cosine(0.1, 3))
    positions = np.array([0, 500, 1500, 2999])
    assert of_cosine.learning_rate_at(1500) == pytest.approx(0.05)
    expected = [of_cosine.learning_rate_at(position) for position in positions.tolist()]
    assert of_cosine.learning_rates_at(positions).tolist() == expected


def test_wrong_learning_rates_name_the_epoch() -> None:
    falling = recipe(curve=lambda epoch: 2 - epoch)
    with pytest.raises(ValueError, match="learning_rate is -1.0 at epoch 3: the curve"):
        falling.learning_rate_at(3000)
    with pytest.raises(ValueError, match="learning_rate is -0.5 at epoch 2.5: the curve"):
        falling.learning_rates_at(np.array([0, 2500, 3000]))


def test_noise_scales() -> None:
    """g = lr / (1 - m) * (N / B - 1), and without the -1; they agree where B is far below N."""
    assert noise_scale(0.1, 128, 0.9, 50_000) == pytest.approx(390.625)
    for batch_size in range(100, 200):  # The plan has the same bits.
        plan = decay(Recipe(batch_size, 0.9, constant(0.1), 50_000, num_epochs=1))
        assert noise_scale(0.1, batch_size, 0.9, 50_000) == plan.at(0).noise_scale
    assert noise_scale_exact(0.1, 128, 0.9, 50_000) == pytest.approx(389.625)
    assert noise_scale_exact(0.1, 1000, 0.9, 1000) == 0
    assert accumulation_epochs(128, 0.9, 50_000) == pytest.approx(0.0256)
