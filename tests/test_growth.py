"""Growth plans: ladders, warm-up and restarts, edges, the lookup, and what is shown of a plan."""

import itertools
import json
import math
import timeit
from typing import Any

import optax
import pytest

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
from batchgrow.plan.plan import Phase, Recipe, Schedule, decay, grow, hybrid

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
    phases = grow(recipe, max_batch_size=512).phases
    assert [phase.batch_size for phase in phases] == [64, 128, 256, 512]
    nominal = [phase.nominal_start_examples / 50_000 for phase in phases]
    assert nominal == pytest.approx([epoch_at_rung(rung) for rung in range(4)], abs=1e-3)


def test_the_learning_rate_carries_what_lies_between_rungs() -> None:
    recipe = Recipe(64, 0.9, exponential(0.1, 0.5, 10), num_examples=50_000, num_epochs=60)
    schedule = grow(recipe, max_batch_size=1000, ladder=4)
    edges = [
        (schedule.at(phase.start_examples).learning_rate, schedule.at(phase.end_examples - 1))
        for phase in schedule.phases
    ]
    assert [phase.batch_size for phase in schedule.phases] == [64, 256, 1000]
    assert [start for start, _ in edges] == pytest.approx([0.1, 0.1, 0.1 * 1000 / 1024], rel=1e-2)
    assert [end.learning_rate for _, end in edges[:2]] == pytest.approx([0.025] * 2, rel=1e-2)


def test_jumps_and_slopes_mix() -> None:
    """On a slope that also jumps, the jump's own factor comes on top of the rungs."""
    slope = exponential(0.1, 0.5, 10)
    curve = Curve(lambda t: slope(t) / (3 if t >= 15 else 1), (15,))
    recipe = Recipe(100, 0.0, curve, num_examples=60_000, num_epochs=30)
    phases = grow(recipe, max_batch_size=math.inf).phases
    starts = [round(phase.nominal_start_examples / 60_000, 3) for phase in phases]
    assert list(zip(starts, [phase.batch_size for phase in phases], strict=True)) == [
        (0, 100),
        (10, 200),
        (15, 600),
        (20, 1200),
    ]


def test_infinite_ladder_grows_at_jumps_only() -> None:
    curve = Curve(lambda t: 0.1 / (1 + t) / (2 if t >= 5 else 1), (5,))
    phases = grow(Recipe(10, 0.9, curve, 1000, 9), ladder=math.inf).phases
    assert [phase.batch_size for phase in phases] == [10, 20]


def test_hybrid_counts_growths() -> None:
    recipe = Recipe(64, 0.9, exponential(0.1, 0.5, 10), num_examples=50_000, num_epochs=60)
    for num_growths in (0, 1, 3):
        phases = hybrid(recipe, num_growths=num_growths).phases
        assert [phase.batch_size for phase in phases] == [64 * 2**n for n in range(num_growths + 1)]


# --- Warm-up and restarts: the batch follows the highest learning rate still to come.


def test_warmup_leaves_the_batch_alone() -> None:
    schedule = grow(GOYAL)
    first = schedule.phases[0]
    assert (first.batch_size, schedule.phases[1].nominal_start_examples) == (8192, 30 * 1_281_167)
    for epoch in (0, 2, 4, 6):
        point = schedule.at(round(epoch * 1_281_167))
        assert point.learning_rate == pytest.approx(min(0.1 + 3.1 * point.epoch / 5, 3.2))


def test_warmup_longer_than_the_first_phase() -> None:
    curve = with_warmup(step(0.8, (3, 6), 0.5), warmup_epochs=4)
    phases = grow(Recipe(16, 0.9, curve, num_examples=1000, num_epochs=9)).phases
    assert [phase.batch_size for phase in phases] == [16, 32]
    assert phases[1].nominal_start_examples == 6000


def test_a_curve_that_only_rises_never_grows() -> None:
    schedule = grow(Recipe(16, 0.9, lambda epoch: 0.1 * (1 + epoch), 1000, 9))
    assert [phase.batch_size for phase in schedule.phases] == [16]


def test_restarts_hold_growth_back() -> None:
    """Cosine restarts with peaks 1, 1/2, 1/2: the batch may double once, and grow in the last."""
    peaks = [1.0, 0.5, 0.5]
    curve = Curve(lambda t: peaks[int(t) // 10] * cosine(1, 10)(t % 10), (10, 20))
    schedule = grow(Recipe(10, 0.9, curve, num_examples=10_000, num_epochs=30))
    points = list(schedule.points())
    assert max(point.learning_rate for point in points) == pytest.approx(1.0)
    assert [(p.batch_size, p.nominal_start_examples) for p in schedule.phases][:4] == [
        (10, 0),
        (20, 50_000),
        (20, 100_000),
        (20, 200_000),
    ]
    assert schedule.phases[4].batch_size == 40
    assert schedule.phases[4].nominal_start_examples == pytest.approx(250_000, abs=2)


# --- Edges.


def test_boundaries_closer_than_an_example_are_one_jump() -> None:
    curve = step(0.1, (1.001, 1.002), 0.5)
    phases = grow(Recipe(2, 0.9, curve, num_examples=100, num_epochs=4)).phases
    assert [(phase.batch_size, phase.nominal_start_examples) for phase in phases] == [
        (2, 0),
        (8, 101),
    ]


def test_cap_below_the_start_fits_the_recipe_to_smaller_hardware() -> None:
    schedule = grow(IMAGENET, max_batch_size=2048)
    points = [schedule.at(phase.start_examples) for phase in schedule.phases]
    assert [point.batch_size for point in points] == [2048] * 4
    assert [point.learning_rate for point in points] == pytest.approx(
        [0.75, 0.075, 0.0075, 0.00075]
    )


def test_default_cap_is_a_tenth_of_the_training_set_but_not_below_the_start() -> None:
    assert grow(CIFAR).phases[-1].batch_size == 5000
    assert grow(CIFAR, batch_multiple=128).phases[-1].batch_size == 39 * 128
    large = Recipe(600, 0.9, step(0.1, (2,), 0.1), num_examples=1000, num_epochs=9)
    assert [phase.batch_size for phase in grow(large).phases] == [600, 600]


def test_batches_round_and_the_learning_rate_follows() -> None:
    recipe = Recipe(100, 0.9, step(0.1, (2, 4), 0.3), num_examples=100_000, num_epochs=6)
    schedule = grow(recipe, batch_multiple=32, max_batch_size=1000)
    points = [schedule.at(phase.start_examples) for phase in schedule.phases]
    assert [point.batch_size for point in points] == [96, 320, 992]  # of 100, 333.3, 1111.1
    assert [point.noise_scale for point in points] == pytest.approx([1000, 300, 90])


def test_one_phase_recipe() -> None:
    recipe = Recipe(100, 0.0, constant(0.1), num_examples=1000, num_epochs=2.5)
    for schedule in (decay(recipe), hybrid(recipe), grow(recipe, max_batch_size=math.inf)):
        assert [phase.num_updates for phase in schedule.phases] == [25]
        assert schedule.at(2499).learning_rate == 0.1


def test_batch_larger_than_the_training_set() -> None:
    schedule = decay(Recipe(150, 0.9, step(0.1, (3,), 0.1), num_examples=100, num_epochs=6))
    assert [(phase.num_updates, phase.batch_size) for phase in schedule.phases] == [(2, 150)] * 2


def test_a_run_makes_at_least_one_update() -> None:
    schedule = grow(Recipe(1000, 0.9, step(0.1, (1,), 0.1), num_examples=100, num_epochs=2))
    assert (schedule.num_updates, schedule.end_examples) == (1, 1000)
    assert schedule.at(999).learning_rate == 0.1


@pytest.mark.parametrize(
    "curve", [cosine(0.1, 30), step(0.1, (10, 20), 0.1), lambda t: 1.0 * (t < 20)]
)
def test_lifted_cap_and_zero_learning_rate(curve: LearningRateCurve) -> None:
    """Where growth outruns what is left of the run, the last batch that fits goes on."""
    recipe = Recipe(16, 0.9, curve, num_examples=1000, num_epochs=30)
    schedule = grow(recipe, max_batch_size=math.inf)
    last = schedule.phases[-1]
    assert abs(schedule.end_examples - 30_000) <= last.batch_size / 2
    assert all(math.isfinite(point.learning_rate) for point in schedule.points())


def test_phase_too_short_for_its_batch_keeps_the_one_before() -> None:
    curve = step(1.0, (9.0, 9.9), 0.1)
    schedule = grow(Recipe(10, 0.9, curve, 1000, 10), max_batch_size=math.inf)
    assert [(p.batch_size, p.num_updates) for p in schedule.phases] == [
        (10, 900),
        (100, 9),
        (100, 1),
    ]
    assert schedule.at(9_900).learning_rate == pytest.approx(0.1)


def test_each_side_of_a_jump_gets_its_own_learning_rate() -> None:
    """Updates straddle the jump at 250 examples: the real boundary is at 240 or at 260."""
    for batch_size, boundary in ((80, 240), (52, 260)):
        recipe = Recipe(batch_size, 0.9, step(0.5, (2.5,), 0.2), num_examples=100, num_epochs=5)
        schedule = decay(recipe)
        assert schedule.phases[1].start_examples == boundary
        assert schedule.at(boundary - 1).learning_rate == pytest.approx(0.5)
        assert schedule.at(boundary).learning_rate == pytest.approx(0.1)


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


# --- The lookup, and the plan as numbers and as text.


def test_positions_outside_are_refused() -> None:
    schedule = decay(Recipe(10, 0.9, constant(0.1), num_examples=100, num_epochs=1))
    for position in (-1, 100):
        with pytest.raises(ValueError, match=f"examples_seen={position} .* 0 to 99"):
            schedule.at(position)


def test_every_position_of_an_update_gives_that_update() -> None:
    recipe = Recipe(10, 0.9, with_warmup(step(0.1, (2, 4), 0.3), 1), num_examples=97, num_epochs=6)
    schedule = grow(recipe, max_batch_size=50)
    seen = 0
    for updates, point in enumerate(schedule.points()):
        assert (point.updates, point.examples_seen) == (updates, seen)
        assert point.epoch == pytest.approx(seen / 97)
        assert schedule.phases[point.phase].batch_size == point.batch_size
        assert {schedule.at(seen + inside) for inside in range(point.batch_size)} == {point}
        seen += point.batch_size
    assert seen == schedule.end_examples


def test_points_resume_where_an_update_starts_only() -> None:
    recipe = Recipe(10, 0.9, step(0.1, (2, 4), 0.2), num_examples=1000, num_epochs=6)
    schedule = grow(recipe)
    all_points = list(schedule.points())
    middle = all_points[225]
    assert middle.phase == 1
    assert list(schedule.points(middle.examples_seen)) == all_points[225:]
    assert list(schedule.points(schedule.end_examples)) == []
    with pytest.raises(ValueError, match=f"starts at {middle.examples_seen}"):
        next(schedule.points(middle.examples_seen + 1))


def test_lookup_does_not_walk_the_phases() -> None:
    """Ten thousand phases cost about as much as one."""
    recipe = Recipe(10, 0.9, constant(0.1), num_examples=100, num_epochs=1000)

    def seconds(num_phases: int) -> float:
        phases = tuple(Phase(10 * n, 1, 10, 0.9, 10 * n) for n in range(num_phases))
        schedule = Schedule(recipe, phases)
        assert schedule.at(10 * num_phases - 5).phase == num_phases - 1
        return min(timeit.repeat(lambda: schedule.at(5 * num_phases), number=100, repeat=5))

    assert seconds(10_000) < 10 * seconds(1)


def test_plan_as_numbers() -> None:
    plan = grow(CIFAR, max_batch_size=5120).to_dict(num_devices=256)
    assert json.loads(json.dumps(plan)) == plan
    assert {key: plan[key] for key in plan if key != "phases"} == {
        "num_examples": 50_000,
        "num_epochs": 200,
        "num_updates": 29_141,
    }
    assert plan["phases"][3] == {
        "start_examples": 7_999_744,
        "end_examples": 10_001_664,
        "num_updates": 391,
        "global_batch_size": 5120,
        "per_device_batch_size": 20,
        "learning_rate_start": pytest.approx(0.032),
        "learning_rate_end": pytest.approx(0.032),
        "momentum": 0.9,
        "noise_scale_start": pytest.approx(3.125),
        "noise_scale_end": pytest.approx(3.125),
    }
    assert [phase["per_device_batch_size"] for phase in plan["phases"]] == [0.5, 2.5, 12.5, 20]
    assert "per_device_batch_size" not in grow(CIFAR).to_dict()["phases"][0]


def test_learning_rates_of_the_plan_are_those_of_the_first_and_last_update() -> None:
    schedule = grow(Recipe(10, 0.9, cosine(0.1, 9), num_examples=500, num_epochs=9))
    for index, points in itertools.groupby(schedule.points(), key=lambda point: point.phase):
        rates = [point.learning_rate for point in points]
        phase = schedule.to_dict()["phases"][index]
        assert (phase["learning_rate_start"], phase["learning_rate_end"]) == (rates[0], rates[-1])


def test_table_fits_100_columns_and_lists_every_phase() -> None:
    curves = (cosine(3.2, 90), exponential(3.2, 0.9), with_warmup(step(3.2, (30, 60, 80), 0.1), 5))
    for curve, batch_size in itertools.product(curves, (32, 8192)):
        recipe = Recipe(batch_size, 0.9, curve, num_examples=1_281_167, num_epochs=90)
        schedule = grow(recipe, max_batch_size=math.inf, momentum=0.975)
        lines = schedule.table(num_devices=1024).splitlines()
        assert max(map(len, lines)) <= 100
        assert len(lines) == len(schedule.phases) + 2
        assert lines[-1].split()[-1] == f"{schedule.num_updates:,}"


def test_a_long_plan_is_made_quickly() -> None:
    def build() -> None:
        grow(Recipe(256, 0.9, with_warmup(cosine(0.1, 90), 5), 1_281_167, 90))

    assert min(timeit.repeat(build, number=1, repeat=5)) < 0.05


def test_positions_of_all_updates_are_the_stream():
    schedule = grow(Recipe(8, 0.9, cosine(0.1, 4), num_examples=100, num_epochs=4))
    positions = [position for point in schedule.points() for position in point.positions]
    assert positions == list(range(schedule.end_examples))
    assert schedule.batch_sizes == (8, 10)


def test_batch_sizes_come_once_each():
    """Two phases of one batch size: the rate falls where the batch may not grow."""
    schedule = grow(CIFAR, max_batch_size=640)
    assert [phase.batch_size for phase in schedule.phases] == [128, 640, 640, 640]
    assert schedule.batch_sizes == (128, 640)
