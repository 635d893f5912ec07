"""Recipes: their checks, their learning rates, and the noise scale."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny import change

from batchgrow.config import make_plan
from batchgrow.plan import Recipe, decay, grow, noise_scale
from batchgrow.plan.curves import (
    Curve,
    constant,
    cosine,
    exponential,
    inverse_time,
    polynomial,
    step,
    wsd,
)
from batchgrow.plan.recipe import accumulation_epochs, noise_scale_exact
from configs import base, cifar10


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


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("constant", constant(0.2)),
        ("step", step(0.2, (1, 2), 0.3)),
        ("exponential", exponential(0.2, 0.7)),
        ("inverse_time", inverse_time(0.2, 0.7)),
        ("cosine", cosine(0.2, 4, 0.01, 1)),
        ("polynomial", polynomial(0.2, 4, 2.0, 0.01)),
        ("wsd", wsd(0.2, 4, 1.5, 2.0, 0.01)),
    ],
)
def test_each_curve_of_a_config_is_the_function_of_its_name(name: str, curve: Curve) -> None:
    changes = {
        "curve": name,
        "num_epochs": 4.0,
        "learning_rate": 0.2,
        "boundaries_epochs": (1.0, 2.0),
        "factor": 0.3,
        "decay_rate": 0.7,
        "final_learning_rate": 0.01,
        "decay_start_epochs": 1.0,
        "power": 2.0,
        "decay_epochs": 1.5,
        "batch_size": 32,
    }
    config = change(base.get_config(), {f"recipe.{k}": v for k, v in changes.items()})
    found = make_plan(config, 1000).recipe
    epochs = (0.0, 0.5, 1.5, 2.4, 2.6, 3.9)
    rates = [found.learning_rate_at(round(1000 * epoch)) for epoch in epochs]
    assert rates == pytest.approx([curve(epoch) for epoch in epochs])


def test_a_config_may_have_a_learning_rate_for_each_optimizer() -> None:
    for optimizer, rate in (("momentum", 0.1), ("adam", 0.001)):
        config = change(cifar10.get_config(), {"optimizer.name": optimizer})
        assert make_plan(config, 50_000).at(0).learning_rate == rate


def test_the_ladder_of_a_config_is_the_factor_of_its_growths() -> None:
    changes = {"curve": "cosine", "batch_size": 32, "learning_rate": 0.1, "num_epochs": 10.0}
    config = change(base.get_config(), {f"recipe.{k}": v for k, v in changes.items()})
    change(config, {"plan.name": "grow", "plan.ladder": 4.0, "plan.max_batch_size": 512.0})
    assert make_plan(config, 10_000).batch_sizes() == (32, 128, 512)
