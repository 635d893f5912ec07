"""Which rule limits the batch, and what plans warn of."""

import math

import pytest

from batchgrow.config import make_experiment, make_plan
from batchgrow.plan import Recipe, decay, grow, hybrid
from batchgrow.plan.curves import Curve, cosine, exponential, polynomial, step
from configs import cifar10, digits


def cosine_recipe(num_epochs: float, momentum: float = 0.9) -> Recipe:
    return Recipe(128, momentum, cosine(0.1, num_epochs), 50_000, num_epochs)


@pytest.mark.parametrize(("num_epochs", "largest"), [(10, 256), (40, 512), (90, 1024)])
def test_rungs_of_a_smooth_curve_have_enough_updates(num_epochs: float, largest: int) -> None:
    """By default; N / 10 would be 5000 for all of them."""
    plan = grow(cosine_recipe(num_epochs))
    assert max(plan.batch_sizes()) == largest
    for segment in plan.segments[1:]:
        assert segment.num_updates * 0.1 >= 20
    assert plan.table().splitlines()[-1] == (
        "largest batch bound by: 20/(1 - momentum) updates in each rung of the curve"
    )
    assert plan.to_dict()["bound"] == plan.bound
    assert plan.warnings == ()


def test_a_larger_momentum_needs_more_updates() -> None:
    assert max(grow(cosine_recipe(90, 0.975)).batch_sizes()) < 1024
    assert max(grow(cosine_recipe(90, 0.0)).batch_sizes()) == 5000


def excess(plan, curvature: float = 0.5) -> float:
    """The final E[w^2] on a noisy quadratic, by the exact recursion of (w, A)."""
    w2, wa, a2 = 100.0, 0.0, 0.0  # E[w^2], E[w A], E[A^2]
    for point in plan.points():
        m, rate, noise = point.momentum, point.learning_rate, 1.0 / point.batch_size
        # A' = m A + h w + e; w' = w - rate A'
        a2_new = m * m * a2 + 2 * m * curvature * wa + curvature**2 * w2 + noise
        wa_old = m * wa + curvature * w2
        w2, wa, a2 = w2 - 2 * rate * wa_old + rate**2 * a2_new, wa_old - rate * a2_new, a2_new
    return w2


@pytest.mark.parametrize("num_epochs", [10, 40])
def test_the_limit_keeps_the_final_loss_near_that_of_the_recipe(num_epochs: float) -> None:
    recipe = cosine_recipe(num_epochs)
    at_most = excess(grow(recipe)) / excess(decay(recipe))
    without = excess(grow(recipe, max_batch_size=5000)) / excess(decay(recipe))
    assert at_most < 1.06
    assert without > 1.4


def test_the_users_own_cap_wins_and_is_warned_of() -> None:
    plan = grow(cosine_recipe(10), max_batch_size=5000)
    assert max(plan.batch_sizes()) == 5000
    (warning,) = plan.warnings
    assert "times 1 / (1 - momentum)" in warning and "use a smaller max_batch_size" in warning
    assert "\n" not in warning


def test_cifar10_increased_momentum_small_is_warned_of() -> None:
    """Ten points below the recipe, as the paper's own is one point below. The others are not."""
    for variant in ("decaying_lr", "increasing_batch_5120", "increased_lr"):
        assert make_plan(cifar10.get_config(variant), 50_000).warnings == ()
    for variant, text in (
        ("increased_momentum,small", "78 updates of 1280 examples are 1.6 times"),
        ("increased_momentum", "390 updates of 5120 examples are 7.8 times"),
    ):
        (warning,) = make_plan(cifar10.get_config(variant), 50_000).warnings
        assert text in warning


@pytest.mark.parametrize("wanted", [True, False])
def test_training_warns_of_the_plan_unless_told_not_to(
    wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = digits.get_config("increasing_batch")
    config.run.plan_warnings = wanted
    make_experiment(config)
    assert [line.startswith("plan: 2 of 4 segments") for line in caplog.messages] == [True] * wanted


@pytest.mark.parametrize("name", ["decay", "follow", "ramp"])
def test_training_always_warns_of_rounding(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = digits.get_config()
    config.recipe.batch_size, config.plan.name = 8, name
    config.plan.batches = "0:8"
    make_experiment(config)
    (line,) = caplog.messages
    assert "batch size 8 is rounded to 16, a multiple of 16" in line


@pytest.mark.parametrize("name", ["decay", "follow", "ramp"])
def test_training_always_warns_of_batches_above_the_data(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = digits.get_config()
    config.recipe.batch_size, config.plan.name = 5008, name
    config.plan.batches = "0:5008"
    make_experiment(config)
    (line,) = caplog.messages
    assert "batch size 5008 is more than the training set of 1437 examples" in line


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, "a tenth of the training set"),
        ({"max_batch_size": 640}, "max_batch_size=640"),
        ({"max_batch_size": math.inf}, ""),
        ({"num_growths": 1}, "num_growths=1"),
    ],
)
def test_the_plan_names_the_rule(options: dict, rule: str) -> None:
    recipe = Recipe(128, 0.9, step(0.1, (60, 120, 160), 0.2), 50_000, num_epochs=200)
    assert grow(recipe, **options).bound == rule


@pytest.mark.parametrize("limit", [100_000, math.inf])
def test_a_batch_without_room_is_the_bound(limit: float) -> None:
    plan = grow(cosine_recipe(2), max_batch_size=limit)
    assert max(plan.batch_sizes()) == 4096
    assert plan.bound == "the end of the run, which has no room for an update of 8192 examples"


def test_staircases_climb_the_ladder_too() -> None:
    """0.97^int(epoch) has 90 steps. It has as many batch sizes as its smooth twin."""
    smooth = Recipe(128, 0.9, exponential(0.1, 0.97), 1_281_167, num_epochs=90)
    steps = Recipe(128, 0.9, lambda epoch: 0.1 * 0.97 ** int(epoch), 1_281_167, num_epochs=90)
    assert grow(steps).batch_sizes() == grow(smooth).batch_sizes() == (128, 256, 512, 1024)
    assert len(grow(steps, ladder=math.inf).batch_sizes()) > 80
    for point in (grow(steps).at(epoch * 1_281_167 + 300_000) for epoch in range(90)):
        assert point.noise_scale == pytest.approx(
            steps.learning_rate_at(point.start_examples) * 1_281_167 / 128 / 0.1
        )


def test_steps_as_large_as_a_rung_stay_growths_of_their_own() -> None:
    recipe = Recipe(90, 0.9, step(0.1, (1, 2), 2 / 3), num_examples=50_000, num_epochs=3)
    assert grow(recipe).batch_sizes() == (90, 135, 203)


def test_infinite_ladder_ignores_a_curve_that_ends_at_zero() -> None:
    curve = Curve(lambda epoch: max(0.0, 0.1 * (1 - epoch / 5)), ())
    recipe = Recipe(10, 0.9, curve, num_examples=1000, num_epochs=9)
    assert grow(recipe, ladder=math.inf).batch_sizes() == (10,)


def test_no_batch_exceeds_the_training_set_when_the_cap_is_lifted() -> None:
    recipe = Recipe(16, 0.0, exponential(0.1, 0.5), num_examples=1000, num_epochs=60)
    plan = grow(recipe, max_batch_size=math.inf)
    assert max(plan.batch_sizes()) == 1000
    assert plan.bound == "the training set"
    assert all(point.noise_scale_exact >= 0 for point in plan.points())
    assert "more than the training set" in " ".join(grow(recipe, max_batch_size=5000).warnings)


def test_a_sawtooth_is_not_aliased() -> None:
    """Its learning rate never exceeds the peak, whichever batch sizes it gets."""
    recipe = Recipe(32, 0.9, lambda epoch: 0.1 * (1 - 0.99 * (epoch % 1)), 2048, num_epochs=500)
    plan = grow(recipe)
    assert max(p.learning_rate for p in plan.points()) <= 0.1 * (1 + 1e-9)


def test_a_fall_that_rounds_away_is_no_growth() -> None:
    recipe = Recipe(128, 0.9, step(0.1, (1, 2), 0.85), num_examples=50_000, num_epochs=3)
    plan = hybrid(recipe, batch_multiple=64, ladder=math.inf)
    assert plan.batch_sizes() == (128, 192)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_multiple": 1e300}, "the first batch size is 1.28e\\+302, with initial_multiple"),
        ({"initial_multiple": 1e308}, "the first batch size is inf, with initial_multiple"),
        ({"batch_multiple": 10**30}, "batch_multiple=10+ must be at most 9,007"),
    ],
)
def test_sizes_that_cannot_be_counted_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow(cosine_recipe(2), max_batch_size=math.inf, **options)


def test_a_run_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="num_epochs=1e\\+300 of num_examples=50000 are more than"):
        cosine_recipe(1e300)


def test_a_rounded_first_batch_is_told() -> None:
    plan = decay(Recipe(17, 0.9, step(0.1, (1,), 0.5), 1000, num_epochs=2), batch_multiple=16)
    assert plan.warnings == (
        "the first batch size 17 is rounded to 16, a multiple of 16; the learning rate follows",
    )


@pytest.mark.parametrize(
    "curve", [cosine(0.1, 20), polynomial(0.1, 20, 2.0), exponential(0.1, 0.8)]
)
def test_the_sum_of_rates_is_the_recipes(curve: Curve) -> None:
    """Each update takes the mean of the rates that it replaces, not the first of them."""
    recipe = Recipe(16, 0.9, curve, num_examples=5000, num_epochs=20)
    of_recipe = sum(point.learning_rate for point in decay(recipe).points())
    for cap in (64, 500):
        plan = grow(recipe, max_batch_size=cap)
        assert sum(p.learning_rate for p in plan.points()) == pytest.approx(of_recipe, rel=0.003)
