"""What holds for every recipe and plan."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow.plan import FixedPlan, Point, Recipe, grow
from batchgrow.plan.curves import (
    Curve,
    constant,
    cosine,
    exponential,
    inverse_time,
    step,
    with_warmup,
)
from batchgrow.plan.descent import find_descent


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    num_epochs = draw(st.floats(0.5, 12))
    height = draw(st.floats(1e-3, 10))
    boundaries = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)))
    factors = draw(st.lists(st.floats(0.05, 1.5), min_size=4, max_size=4))

    def staircase(epoch: float) -> float:
        return height * math.prod(factors[: sum(epoch >= b / 4 for b in boundaries)])

    known = tuple(boundary / 4 for boundary in boundaries)
    curve = draw(
        st.sampled_from(
            [
                constant(height),
                step(height, known, factors[0]),
                Curve(staircase, known),
                staircase,
                exponential(height, factors[0]),
                inverse_time(height, factors[0]),
                cosine(height, num_epochs),
                lambda epoch: height * (1.1 + math.cos(3 * epoch)),
                lambda epoch: staircase(epoch) * (1.1 + math.cos(epoch)),
            ]
        )
    )
    if draw(st.booleans()):
        curve = with_warmup(curve, draw(st.floats(0, 4)), draw(st.floats(0.01, 1)))
    return Recipe(
        batch_size=draw(st.integers(1, 300)),
        momentum=draw(st.sampled_from([0.0, 0.5, 0.9, 0.99])),
        curve=curve,
        num_examples=draw(st.integers(10, 3000)),
        num_epochs=num_epochs,
    )


PLANS = st.fixed_dictionaries(
    {
        "max_batch_size": st.sampled_from([None, math.inf, 64, 100, 1000]),
        "initial_multiple": st.floats(0.2, 8),
        "momentum": st.sampled_from([None, 0.0, 0.9, 0.95]),
        "exponent": st.sampled_from([1.0, 0.5]),
        "ladder": st.sampled_from([2.0, 1.3, 5.0, math.inf]),
        "batch_multiple": st.sampled_from([1, 7, 64]),
        "num_growths": st.sampled_from([None, 0, 1, 3]),
    }
)


def some_points(plan: FixedPlan) -> list[Point]:
    """Every update of a short plan; of a long one the first, second and last of each segment."""
    if plan.num_updates <= 200:
        return list(plan.points())
    return [
        plan.at(segment.start_examples + update * segment.batch_size)
        for segment in plan.segments
        for update in sorted({0, min(1, segment.num_updates - 1), segment.num_updates - 1})
    ]


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(), options=PLANS)
def test_the_noise_scale_is_the_recipes(recipe: Recipe, options: dict[str, Any]) -> None:
    """At each update it is that of the recipe at the mean start of the updates that it replaces."""
    plan = grow(recipe, **(options | {"exponent": 1.0}))
    largest = max(segment.batch_size for segment in plan.segments)
    for point in some_points(plan):
        segment = plan.segments[point.segment]
        middle = point.start_examples + max(0, point.batch_size - recipe.batch_size) // 2
        middle = min(middle, recipe.end_examples - 1)
        nominal = max(point.start_examples, middle, segment.nominal_start_examples)
        assert nominal - point.start_examples <= largest / 2
        assert all(
            nominal < later.nominal_start_examples for later in plan.segments[point.segment + 1 :]
        )
        learning_rate = float(recipe.curve(nominal / recipe.num_examples))
        of_recipe = learning_rate * recipe.num_examples / recipe.batch_size / (1 - recipe.momentum)
        assert point.noise_scale == pytest.approx(of_recipe)
        of_plan = (
            point.learning_rate * recipe.num_examples / point.batch_size / (1 - point.momentum)
        )
        assert point.noise_scale == pytest.approx(of_plan)
        exact = point.noise_scale - point.learning_rate / (1 - point.momentum)
        assert point.noise_scale_exact == pytest.approx(exact, rel=1e-6, abs=1e-9 * of_plan)


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(), options=PLANS)
def test_examples_are_partitioned(recipe: Recipe, options: dict[str, Any]) -> None:
    plan = grow(recipe, **options)
    segments, multiple = plan.segments, options["batch_multiple"]
    position = 0
    for segment in segments:
        assert segment.start_examples == position
        assert segment.num_updates >= 1 and segment.batch_size >= 1
        assert segment.batch_size % multiple == 0
        position += segment.num_updates * segment.batch_size
    assert position == plan.end_examples
    assert plan.num_updates == sum(segment.num_updates for segment in segments)
    nominal_end = round(recipe.num_epochs * recipe.num_examples)
    if plan.num_updates > 1:
        assert abs(plan.end_examples - nominal_end) <= segments[-1].batch_size / 2
    for earlier, later in itertools.pairwise(segments):
        assert earlier.nominal_start_examples < later.nominal_start_examples
        assert abs(later.start_examples - later.nominal_start_examples) <= earlier.batch_size / 2
        assert earlier.batch_size < later.batch_size or any(
            earlier.nominal_start_examples < jump <= later.nominal_start_examples
            for jump in find_descent(recipe).jumps
        )
        assert earlier.batch_size <= later.batch_size
    if options["max_batch_size"] is not None:
        assert segments[-1].batch_size <= max(options["max_batch_size"], multiple)


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(), options=PLANS)
def test_the_learning_rate_never_exceeds_what_the_start_allowed(
    recipe: Recipe, options: dict[str, Any]
) -> None:
    plan = grow(recipe, **(options | {"batch_multiple": 1}))
    highest = find_descent(recipe).ceiling(0)
    first = plan.segments[0].batch_size
    momentum_ratio = (1 - plan.segments[0].momentum) / (1 - recipe.momentum)
    allowed = highest * (first / recipe.batch_size) ** plan.exponent * momentum_ratio
    rounding = 1 + 1 / first
    for point in some_points(plan):
        assert point.learning_rate <= allowed * rounding * (1 + 1e-3)
