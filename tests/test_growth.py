"""Growth plans: jumps and ladders, warm-up and restarts, edges, wrong options."""

import math
from typing import Any

import optax
import pytest

from batchgrow.plan import Recipe, decay, grow, hybrid
from batchgrow.plan.curves import (
    Curve,
    LearningRateCurve,
    constant,
    cosine,
    exponential,
    inverse_time,
    step,
    with_warmup,
)
from batchgrow.plan.descent import find_descent
from batchgrow.plan.growth import _falls

CIFAR = Recipe(128, 0.9, step(0.1, (60, 120, 160), 0.2), num_examples=50_000, num_epochs=200)
IMAGENET = Recipe(8192, 0.9, step(3.0, (30, 60, 80), 0.1), num_examples=1_281_167, num_epochs=90)
GOYAL = Recipe(
    8192, 0.9, with_warmup(step(3.2, (30, 60, 80), 0.1), 5, 0.1), 1_281_167, num_epochs=90
)


# --- Smooth curves climb the ladder.


@pytest.mark.parametrize(
    ("curve", "epoch_at_rung"),
    [
        (exponential(0.1, 0.5, 10), lambda rung: 10 * rung),
        (inverse_time(0.1, 1.0), lambda rung: 2**rung - 1),
        (cosine(0.1, 90), lambda rung: 90 / math.pi * math.acos(2 / 2**rung - 1)),
        (lambda epoch: 0.1 * (1 - epoch / 90), lambda rung: 90 * (1 - 2**-rung)),
        (
            optax.cosine_decay_schedule(0.1, 90),
            lambda rung: 90 / math.pi * math.acos(2 / 2**rung - 1),
        ),
    ],
)
def test_each_rung_is_where_the_curve_has_fallen_so_far(
    curve: LearningRateCurve, epoch_at_rung: Any
) -> None:
    recipe = Recipe(64, 0.9, curve, num_examples=50_000, num_epochs=90)
    segments = grow(recipe, max_batch_size=512).segments
    assert [segment.batch_size for segment in segments] == [64, 128, 256, 512]
    nominal = [segment.nominal_start_examples / 50_000 for segment in segments]
    assert nominal == pytest.approx([epoch_at_rung(rung) for rung in range(4)], abs=1e-3)


def test_the_learning_rate_carries_what_lies_between_rungs() -> None:
    recipe = Recipe(64, 0.9, exponential(0.1, 0.5, 10), num_examples=50_000, num_epochs=60)
    plan = grow(recipe, max_batch_size=1000, ladder=4)
    edges = [
        (plan.at(segment.start_examples).learning_rate, plan.at(segment.end_examples - 1))
        for segment in plan.segments
    ]
    assert [segment.batch_size for segment in plan.segments] == [64, 256, 1000]
    assert [start for start, _ in edges] == pytest.approx([0.1, 0.1, 0.1 * 1000 / 1024], rel=1e-2)
    assert [end.learning_rate for _, end in edges[:2]] == pytest.approx([0.025] * 2, rel=1e-2)


def test_jumps_and_slopes_mix() -> None:
    """On a slope that also jumps, the jump's own factor comes on top of the rungs."""
    slope = exponential(0.1, 0.5, 10)
    curve = Curve(lambda t: slope(t) / (3 if t >= 15 else 1), (15,))
    recipe = Recipe(100, 0.0, curve, num_examples=60_000, num_epochs=30)
    segments = grow(recipe, max_batch_size=math.inf).segments
    starts = [round(segment.nominal_start_examples / 60_000, 3) for segment in segments]
    assert list(zip(starts, [segment.batch_size for segment in segments], strict=True)) == [
        (0, 100),
        (10, 200),
        (15, 600),
        (20, 1200),
    ]


def test_infinite_ladder_grows_at_jumps_only() -> None:
    curve = Curve(lambda t: 0.1 / (1 + t) / (2 if t >= 5 else 1), (5,))
    segments = grow(Recipe(10, 0.9, curve, 1000, 9), ladder=math.inf).segments
    assert [segment.batch_size for segment in segments] == [10, 20]


def test_hybrid_counts_growths() -> None:
    recipe = Recipe(64, 0.9, exponential(0.1, 0.5, 10), num_examples=50_000, num_epochs=60)
    for num_growths in (0, 1, 3):
        segments = hybrid(recipe, num_growths=num_growths).segments
        assert [segment.batch_size for segment in segments] == [
            64 * 2**n for n in range(num_growths + 1)
        ]


# --- Warm-up and restarts: the batch follows the highest learning rate still to come.


def test_warmup_leaves_the_batch_alone() -> None:
    plan = grow(GOYAL)
    first = plan.segments[0]
    assert (first.batch_size, plan.segments[1].nominal_start_examples) == (8192, 30 * 1_281_167)
    for epoch in (0, 2, 4, 6):
        point = plan.at(round(epoch * 1_281_167))
        assert point.learning_rate == pytest.approx(min(0.1 + 3.1 * point.epoch / 5, 3.2))


def test_warmup_longer_than_the_first_segment() -> None:
    curve = with_warmup(step(0.8, (3, 6), 0.5), warmup_epochs=4)
    segments = grow(Recipe(16, 0.9, curve, num_examples=1000, num_epochs=9)).segments
    assert [segment.batch_size for segment in segments] == [16, 32]
    assert segments[1].nominal_start_examples == 6000


def test_a_curve_that_only_rises_never_grows() -> None:
    plan = grow(Recipe(16, 0.9, lambda epoch: 0.1 * (1 + epoch), 1000, 9))
    assert [segment.batch_size for segment in plan.segments] == [16]


def test_restarts_hold_growth_back() -> None:
    """Cosine restarts with peaks 1, 1/2, 1/2: the batch may double once, and grow in the last."""
    peaks = [1.0, 0.5, 0.5]
    curve = Curve(lambda t: peaks[int(t) // 10] * cosine(1, 10)(t % 10), (10, 20))
    plan = grow(Recipe(10, 0.9, curve, num_examples=10_000, num_epochs=30))
    points = list(plan.points())
    assert max(point.learning_rate for point in points) == pytest.approx(1.0)
    assert [(p.batch_size, p.nominal_start_examples) for p in plan.segments][:4] == [
        (10, 0),
        (20, 50_000),
        (20, 100_000),
        (20, 200_000),
    ]
    assert plan.segments[4].batch_size == 40
    assert plan.segments[4].nominal_start_examples == pytest.approx(250_000, abs=2)


# --- Edges.


def test_boundaries_closer_than_an_example_are_one_jump() -> None:
    curve = step(0.1, (1.001, 1.002), 0.5)
    segments = grow(Recipe(2, 0.9, curve, num_examples=100, num_epochs=4)).segments
    assert [(segment.batch_size, segment.nominal_start_examples) for segment in segments] == [
        (2, 0),
        (8, 101),
    ]


def test_cap_below_the_start_fits_the_recipe_to_smaller_hardware() -> None:
    plan = grow(IMAGENET, max_batch_size=2048)
    points = [plan.at(segment.start_examples) for segment in plan.segments]
    assert [point.batch_size for point in points] == [2048] * 4
    assert [point.learning_rate for point in points] == pytest.approx(
        [0.75, 0.075, 0.0075, 0.00075]
    )


def test_default_cap_is_a_tenth_of_the_training_set_but_not_below_the_start() -> None:
    assert grow(CIFAR).segments[-1].batch_size == 5000
    assert grow(CIFAR, batch_multiple=128).segments[-1].batch_size == 39 * 128
    large = Recipe(600, 0.9, step(0.1, (2,), 0.1), num_examples=1000, num_epochs=9)
    assert [segment.batch_size for segment in grow(large).segments] == [600, 600]


def test_batches_round_and_the_learning_rate_follows() -> None:
    recipe = Recipe(100, 0.9, step(0.1, (2, 4), 0.3), num_examples=100_000, num_epochs=6)
    plan = grow(recipe, batch_multiple=32, max_batch_size=1000)
    points = [plan.at(segment.start_examples) for segment in plan.segments]
    assert [point.batch_size for point in points] == [96, 320, 992]  # of 100, 333.3, 1111.1
    assert [point.noise_scale for point in points] == pytest.approx([1000, 300, 90])


def test_one_segment_recipe() -> None:
    recipe = Recipe(100, 0.0, constant(0.1), num_examples=1000, num_epochs=2.5)
    for plan in (decay(recipe), hybrid(recipe), grow(recipe, max_batch_size=math.inf)):
        assert [segment.num_updates for segment in plan.segments] == [25]
        assert plan.at(2499).learning_rate == 0.1


def test_batch_larger_than_the_training_set() -> None:
    plan = decay(Recipe(150, 0.9, step(0.1, (3,), 0.1), num_examples=100, num_epochs=6))
    assert [(segment.num_updates, segment.batch_size) for segment in plan.segments] == [
        (2, 150)
    ] * 2


def test_a_run_makes_at_least_one_update() -> None:
    plan = grow(Recipe(1000, 0.9, step(0.1, (1,), 0.1), num_examples=100, num_epochs=2))
    assert (plan.num_updates, plan.end_examples) == (1, 1000)
    assert plan.at(999).learning_rate == 0.1


@pytest.mark.parametrize(
    "curve", [cosine(0.1, 30), step(0.1, (10, 20), 0.1), lambda t: 1.0 * (t < 20)]
)
def test_lifted_cap_and_zero_learning_rate(curve: LearningRateCurve) -> None:
    """Where growth outruns what is left of the run, the last batch that fits goes on."""
    recipe = Recipe(16, 0.9, curve, num_examples=1000, num_epochs=30)
    plan = grow(recipe, max_batch_size=math.inf)
    last = plan.segments[-1]
    assert abs(plan.end_examples - 30_000) <= last.batch_size / 2
    assert all(math.isfinite(point.learning_rate) for point in plan.points())


def test_segment_too_short_for_its_batch_keeps_the_one_before() -> None:
    curve = step(1.0, (9.0, 9.9), 0.1)
    plan = grow(Recipe(10, 0.9, curve, 1000, 10), max_batch_size=math.inf)
    assert [(p.batch_size, p.num_updates) for p in plan.segments] == [
        (10, 900),
        (100, 9),
        (100, 1),
    ]
    assert plan.at(9_900).learning_rate == pytest.approx(0.1)


def test_each_side_of_a_jump_gets_its_own_learning_rate() -> None:
    """Updates straddle the jump at 250 examples: the real boundary is at 240 or at 260."""
    for batch_size, boundary in ((80, 240), (52, 260)):
        recipe = Recipe(batch_size, 0.9, step(0.5, (2.5,), 0.2), num_examples=100, num_epochs=5)
        plan = decay(recipe)
        assert plan.segments[1].start_examples == boundary
        assert plan.at(boundary - 1).learning_rate == pytest.approx(0.5)
        assert plan.at(boundary).learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 100, "batch_multiple": 128}, "max_batch_size=100 .*batch_multiple=128"),
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_batch_size": math.nan}, "max_batch_size=nan"),
        ({"initial_multiple": 0}, "initial_multiple=0"),
        ({"initial_multiple": math.inf}, "initial_multiple=inf"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"exponent": 1.5}, "exponent=1.5"),
        ({"ladder": 1.0}, "ladder=1.0"),
        ({"batch_multiple": 0}, "batch_multiple=0"),
        ({"batch_multiple": 2.5}, "batch_multiple=2.5"),
        ({"num_growths": -1}, "num_growths=-1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        grow(CIFAR, **options)
    assert "\n" not in str(error.value)


def test_what_is_no_recipe_is_refused() -> None:
    plan: Any = decay(CIFAR)
    for make in (grow, decay, hybrid):
        with pytest.raises(TypeError, match="^recipe must be .*Recipe, not a FixedPlan: pass plan"):
            make(plan)


def test_a_constant_curve_has_one_segment() -> None:
    for curve in (constant(0.1), lambda epoch: 0.1, optax.constant_schedule(0.1)):
        recipe = Recipe(16, 0.9, curve, num_examples=1000, num_epochs=3)
        assert [segment.batch_size for segment in grow(recipe).segments] == [16]


def test_a_limit_that_stops_all_growth_is_said():
    """Without a limit of one's own each rung has 20 / (1 - momentum) updates."""
    recipe = Recipe(8, 0.9, cosine(0.1, num_epochs=1), num_examples=800, num_epochs=1)
    plan = grow(recipe)
    assert [segment.batch_size for segment in plan.segments] == [8]
    assert "the batch does not grow: it is limited by 20/(1 - momentum)" in plan.warnings[0]
    assert not any("does not grow" in line for line in grow(recipe, max_batch_size=64).warnings)
    assert not any("does not grow" in line for line in grow(recipe, num_growths=0).warnings)


def test_two_rungs_that_end_at_one_example_last_as_long_as_they_do():
    """The rate falls by 4 at each example, so that both rungs of a ladder of 2 are one place."""
    recipe = Recipe(1, 0.0, lambda epoch: 4.0 ** (-64 * epoch), num_examples=64, num_epochs=1)
    falls = _falls(recipe, find_descent(recipe), 2.0)
    assert [fall.position for fall in falls] == [1, 1, 2, 2, 3, 3]
    assert [fall.rung_examples for fall in falls] == [0, 1, 0, 1, 0, 61]


def test_a_recipe_without_growth_keeps_the_exponent_where_its_batch_is_rounded() -> None:
    recipe = Recipe(40, 0.9, constant(0.1), num_examples=1000, num_epochs=4, optimizer="lars")
    with pytest.raises(ValueError, match="exponent"):
        decay(recipe, batch_multiple=16)
    assert decay(recipe, batch_multiple=16, exponent=0.5).batch_sizes() == (48,)
