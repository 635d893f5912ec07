"""Plans: their lookup, their numbers and text, and what the training loop asks of them."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from batchgrow.plan import FixedPlan, Plan, Point, Recipe, Segment, decay, grow
from batchgrow.plan.curves import constant, cosine, exponential, step, with_warmup

CIFAR = Recipe(128, 0.9, step(0.1, (60, 120, 160), 0.2), num_examples=50_000, num_epochs=200)


# --- The lookup, and the plan as numbers and as text.


def test_positions_outside_are_refused() -> None:
    plan = decay(Recipe(10, 0.9, constant(0.1), num_examples=100, num_epochs=1))
    for position in (-1, 100):
        with pytest.raises(ValueError, match=f"examples_seen={position} .* 0 to 99"):
            plan.at(position)
    for update in (-1, 10):
        with pytest.raises(ValueError, match=f"update={update} is outside .* 0 to 9"):
            plan.point(update)


def test_every_position_of_an_update_gives_that_update() -> None:
    recipe = Recipe(10, 0.9, with_warmup(step(0.1, (2, 4), 0.3), 1), num_examples=97, num_epochs=6)
    plan = grow(recipe, max_batch_size=50)
    seen = 0
    for update, point in enumerate(plan.points()):
        assert (point.update, point.start_examples) == (update, seen)
        assert point.epoch == pytest.approx(seen / 97)
        assert plan.segments[point.segment].batch_size == point.batch_size
        assert point.end_examples == seen + point.batch_size
        assert {plan.at(seen + inside) for inside in range(point.batch_size)} == {point}
        assert plan.point(update) == point
        seen += point.batch_size
    assert seen == plan.end_examples


def test_points_resume_where_an_update_starts_only() -> None:
    recipe = Recipe(10, 0.9, step(0.1, (2, 4), 0.2), num_examples=1000, num_epochs=6)
    plan = grow(recipe)
    all_points = list(plan.points())
    middle = all_points[225]
    assert middle.segment == 1
    assert list(plan.points(middle.start_examples)) == all_points[225:]
    assert list(plan.points(plan.end_examples)) == []
    with pytest.raises(ValueError, match=f"starts at {middle.start_examples}"):
        next(plan.points(middle.start_examples + 1))


def test_lookup_in_many_segments() -> None:
    recipe = Recipe(10, 0.9, constant(0.1), num_examples=100, num_epochs=1000)
    plan = FixedPlan(recipe, tuple(Segment(10 * n, 1, 10, 0.9, 10 * n) for n in range(10_000)))
    assert [plan.at(n).segment for n in (0, 9, 10, 55_555, 99_999)] == [0, 0, 1, 5555, 9999]
    assert plan.at(55_555).update == 5555


def test_plan_as_numbers() -> None:
    plan = grow(CIFAR, max_batch_size=5120).to_dict(num_devices=256)
    assert json.loads(json.dumps(plan)) == plan
    assert {key: plan[key] for key in plan if key not in ("segments", "noise_scale")} == {
        "num_examples": 50_000,
        "num_epochs": 200,
        "num_updates": 29_141,
        "bound": "max_batch_size=5120",
    }
    assert len(plan["noise_scale"]) == 128
    assert plan["segments"][3] == {
        "start_examples": 7_999_744,
        "nominal_start_examples": 8_000_000,
        "end_examples": 10_001_664,
        "num_updates": 391,
        "batch_size": 5120,
        "per_device_batch_size": 20,
        "learning_rate_start": pytest.approx(0.032),
        "learning_rate_end": pytest.approx(0.032),
        "momentum": 0.9,
        "noise_scale_start": pytest.approx(3.125),
        "noise_scale_end": pytest.approx(3.125),
    }
    assert [segment["per_device_batch_size"] for segment in plan["segments"]] == [
        0.5,
        2.5,
        12.5,
        20,
    ]
    assert "per_device_batch_size" not in grow(CIFAR).to_dict()["segments"][0]


def test_learning_rates_of_the_plan_are_those_of_the_first_and_last_update() -> None:
    plan = grow(Recipe(10, 0.9, cosine(0.1, 9), num_examples=500, num_epochs=9))
    for index, points in itertools.groupby(plan.points(), key=lambda point: point.segment):
        rates = [point.learning_rate for point in points]
        segment = plan.to_dict()["segments"][index]
        assert (segment["learning_rate_start"], segment["learning_rate_end"]) == (
            rates[0],
            rates[-1],
        )


def test_corners_follow_the_learning_rates_of_all_updates() -> None:
    """A warm-up and a cosine in one segment, which a line from start to end would hide."""
    curve = with_warmup(cosine(0.1, 9), 1)
    plan = decay(Recipe(10, 0.9, curve, num_examples=5000, num_epochs=9))
    (segment,) = plan.to_dict()["segments"]
    positions, rates = np.array(segment["learning_rates"]).T
    assert 5 < len(rates) < 100
    points = list(plan.points())
    exact = np.array([point.learning_rate for point in points])
    shown = np.exp(
        np.interp([point.start_examples for point in points], positions, np.log(rates.clip(1e-4)))
    )
    visible = slice(30, None)  # The first 30 of 4,500 updates are less than a pixel.
    np.testing.assert_allclose(shown[visible], exact.clip(1e-4)[visible], rtol=0.03)
    assert (positions[0], positions[-1]) == (0, points[-1].start_examples)
    assert "learning_rates" not in grow(CIFAR, max_batch_size=5120).to_dict()["segments"][0]


def test_table_fits_100_columns_and_lists_every_segment() -> None:
    curves = (cosine(3.2, 90), exponential(3.2, 0.9), with_warmup(step(3.2, (30, 60, 80), 0.1), 5))
    for curve, batch_size in itertools.product(curves, (32, 8192)):
        recipe = Recipe(batch_size, 0.9, curve, num_examples=1_281_167, num_epochs=90)
        plan = grow(recipe, max_batch_size=math.inf, momentum=0.975)
        lines = plan.table(num_devices=1024).splitlines()
        assert max(map(len, lines)) <= 100
        assert len(lines) == len(plan.segments) + 2 + bool(plan.bound)
        assert lines[len(plan.segments) + 1].split()[-1] == f"{plan.num_updates:,}"


def test_table_shows_the_peak_of_a_warm_up() -> None:
    """The peak is at the end of the warm-up, in the first segment of 40,000 updates."""
    recipe = Recipe(10, 0.9, with_warmup(cosine(0.1, 90), 5), num_examples=10_000, num_epochs=90)
    plan = grow(recipe, max_batch_size=20)
    first, second = (line.split() for line in plan.table().splitlines()[1:3])
    peak = max(plan.points(), key=lambda point: point.learning_rate)
    assert (peak.segment, peak.update) == (0, 5000)
    middle = f"..{peak.learning_rate:.3g}.."
    assert first[5].startswith("0..") and middle in first[5]
    assert first[7].startswith("0..") and f"..{peak.noise['noise_scale']:.3g}.." in first[7]
    assert second[5].count("..") == 1  # it falls


def test_positions_of_all_updates_are_the_stream() -> None:
    recipe = Recipe(8, 0.9, cosine(0.1, 4), num_examples=100, num_epochs=4)
    plan = grow(recipe, max_batch_size=10)
    positions = [position for point in plan.points() for position in point.positions]
    assert positions == list(range(plan.end_examples))
    assert plan.batch_sizes() == (8, 10)


def test_batch_sizes_come_once_each() -> None:
    """Two segments of one batch size: the rate falls where the batch may not grow."""
    plan = grow(CIFAR, max_batch_size=640)
    assert [segment.batch_size for segment in plan.segments] == [128, 640, 640, 640]
    assert plan.batch_sizes() == (128, 640)
    assert plan.batch_sizes(plan.segments[:1]) == (640,)
    assert plan.batch_sizes(plan.segments) == ()


# --- What the training loop does with a plan, decided in advance or late.


@dataclass(frozen=True)
class WhenLossStops(Plan):
    """Doubles the batch size after each epoch that did not reduce the training loss."""

    recipe: Recipe
    max_batch_size: int
    exponent: float = 1.0

    def next(self, history: Sequence[Segment], measured: Mapping[str, float]) -> Segment | None:
        start = history[-1].end_examples if history else 0
        if start >= self.end_examples:
            return None
        batch_size = history[-1].batch_size if history else self.recipe.batch_size
        if measured.get("loss", 0.0) > 1.0:
            batch_size = min(2 * batch_size, self.max_batch_size)
        num_updates = max(1, round(self.recipe.num_examples / batch_size))
        return Segment(start, num_updates, batch_size, self.recipe.momentum, start)

    def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]:
        return tuple(history)

    def batch_sizes(self, history: Sequence[Segment] = ()) -> tuple[int, ...]:
        batch_size = history[-1].batch_size if history else self.recipe.batch_size
        return tuple(b for b in (batch_size, 2 * batch_size) if b <= self.max_batch_size)


def run(plan: Plan, losses: Iterable[float]) -> tuple[list[Segment], list[Point]]:
    """The loop, without training: one loss per segment."""
    history: list[Segment] = []
    points: list[Point] = []
    for loss in itertools.chain([None], losses):
        segment = plan.next(history, {} if loss is None else {"loss": loss})
        if segment is None:
            return history, points
        assert segment.batch_size in plan.batch_sizes(history)
        history.append(segment)
        assert plan.known(history)[: len(history)] == tuple(history)
        points += plan.segment_points(history)
    raise AssertionError("the plan has not ended")


LATE = WhenLossStops(
    Recipe(10, 0.9, cosine(0.1, 4), num_examples=100, num_epochs=4), max_batch_size=20
)


def test_a_plan_may_decide_late() -> None:
    history, points = run(LATE, [0.5, 1.5, 1.5, 0.5])
    assert [segment.batch_size for segment in history] == [10, 10, 20, 20]
    assert [segment.start_examples for segment in history] == [0, 100, 200, 300]
    assert history[-1].end_examples == LATE.end_examples == 400
    assert [point.update for point in points] == list(range(30))
    assert [n for point in points for n in point.positions] == list(range(400))
    for point in points:
        on_curve = LATE.recipe.learning_rate_at(point.start_examples + (point.batch_size - 10) // 2)
        assert point.learning_rate == pytest.approx(on_curve * point.batch_size / 10)
        assert history[point.segment].batch_size == point.batch_size
    assert run(LATE, [0.5] * 4)[0] != history


def test_a_late_plan_shows_what_is_decided() -> None:
    assert LATE.to_dict()["segments"] == []
    assert LATE.table().splitlines()[-1].split() == ["total", "0.00-0.00", "0", "0"]
    history, points = run(LATE, [0.5, 1.5, 1.5, 0.5])
    shown = LATE.to_dict(history[:3])
    assert [segment["batch_size"] for segment in shown["segments"]] == [10, 10, 20]
    assert shown["num_updates"] == 25
    assert shown["segments"][2]["learning_rate_end"] == points[24].learning_rate
    assert len(LATE.table(history, num_devices=4).splitlines()) == 4 + 2


def test_a_fixed_plan_needs_no_measurements() -> None:
    plan = grow(Recipe(10, 0.9, step(0.1, (2, 4), 0.5), num_examples=100, num_epochs=6))
    history, points = run(plan, itertools.repeat(math.nan))
    assert tuple(history) == plan.segments == plan.known() == plan.known(history[:1])
    assert points == list(plan.points())


def test_a_segment_resumes_in_its_middle() -> None:
    plan = grow(CIFAR, max_batch_size=5120)
    middle = plan.at(plan.segments[2].start_examples + 40 * 3200)
    history = plan.segments[:3]
    resumed = list(plan.segment_points(history, middle.start_examples))
    assert resumed[0] == middle and len(resumed) == 625 - 40
    assert list(plan.segment_points(history))[40:] == resumed
    assert resumed == list(itertools.takewhile(lambda p: p.segment == 2, plan.points(middle[0])))
    assert list(plan.segment_points(history, history[-1].end_examples)) == []
    for outside in (history[-1].start_examples - 3200, history[-1].end_examples + 3200):
        with pytest.raises(ValueError, match=f"examples_seen={outside} is outside of segment 2"):
            next(plan.segment_points(history, outside))
    with pytest.raises(ValueError, match=f"inside an update, which starts at {middle[0]}"):
        next(plan.segment_points(history, middle[0] + 1))


def test_a_history_of_another_plan_is_refused() -> None:
    plan = grow(CIFAR, max_batch_size=5120)
    other = decay(CIFAR)
    assert plan.next(other.segments[:1]) == plan.segments[1]  # The first segments are equal.
    for history in (other.segments[:2], (*plan.segments, plan.segments[-1])):
        with pytest.raises(ValueError, match=f"history of {len(history)} segments and"):
            plan.next(history)


def test_learning_rates_of_a_segment_are_those_of_its_points() -> None:
    for exponent, momentum in ((1.0, None), (0.5, 0.98)):
        recipe = Recipe(8, 0.9, with_warmup(cosine(0.1, 9), 1), num_examples=997, num_epochs=9)
        plan = grow(recipe, exponent=exponent, momentum=momentum)
        rates = [rate for segment in plan.segments for rate in plan.learning_rates(segment)]
        assert rates == [point.learning_rate for point in plan.points()]
