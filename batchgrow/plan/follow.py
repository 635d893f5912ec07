"""A plan that grows the batch when the measured gradient noise has grown."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from batchgrow.plan.curves import LearningRateCurve
from batchgrow.plan.growth import (
    batch_limit,
    check_exponent,
    check_first,
    check_largest,
    check_recipe,
    nearest,
)
from batchgrow.plan.noise import NOISE_SCALE
from batchgrow.plan.plan import FixedPlan, Plan, Segment
from batchgrow.plan.recipe import Recipe, check_whole


@dataclass(frozen=True)
class FollowPlan(Plan):
    """Climbs a ladder of batch sizes as the gradient noise scale passes its rungs.

    The first rung is the recipe's batch size, or `max_batch_size` if that is smaller. At fixed
    positions of the run the plan looks at the measured noise scale. It climbs to the next rung if
    `factor` times the noise scale is at least that rung, and it never goes back. The learning rate
    is coupled to the batch as in every plan.

    Attributes:
      recipe: what the plan follows.
      max_batch_size: no rung is higher; a multiple of `batch_multiple`.
      decide_every: examples between two decisions.
      factor: the largest ratio of the batch size to the noise scale.
      ladder: the factor between two rungs.
      batch_multiple: every rung is a multiple of this.
      exponent: as in `Plan`.

    Raises:
      TypeError: if `recipe` is not a `Recipe`.
      ValueError: for a field out of its range.
    """

    recipe: Recipe
    max_batch_size: int
    decide_every: int
    factor: float = 1.0
    ladder: float = 2.0
    batch_multiple: int = 1
    exponent: float = 1.0

    def __post_init__(self) -> None:
        check_recipe(self.recipe)
        check_whole("decide_every", self.decide_every)
        check_whole("batch_multiple", self.batch_multiple)
        check_whole("max_batch_size", self.max_batch_size)
        if self.max_batch_size % self.batch_multiple:
            raise ValueError(
                f"max_batch_size={self.max_batch_size} must be a multiple of "
                f"batch_multiple={self.batch_multiple}"
            )
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be a finite number above 0")
        if not 1 < self.ladder < math.inf:
            raise ValueError(f"ladder={self.ladder} must be a finite number above 1")
        if not 0 <= self.exponent <= 1:
            raise ValueError(f"exponent={self.exponent} must be between 0 and 1")

    @property
    def momentum_curve(self) -> LearningRateCurve | None:
        """The momentum of the recipe by the epoch, or None if it is a number."""
        return self.recipe.momentum if callable(self.recipe.momentum) else None

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """The batch sizes that the plan may choose, rising."""
        rungs = [min(nearest(self.recipe.batch_size, self.batch_multiple), self.max_batch_size)]
        size = float(self.recipe.batch_size)
        while rungs[-1] < self.max_batch_size:
            size *= self.ladder
            rung = min(nearest(size, self.batch_multiple), self.max_batch_size)
            if rung > rungs[-1]:
                rungs.append(rung)
        return tuple(rungs)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the plan differ from the recipe in practice."""
        first = min(self.recipe.batch_size, self.max_batch_size)
        return (
            *check_first(first, self.rungs[0], self.batch_multiple),
            *check_largest(self.recipe, self.rungs[-1]),
        )

    def next(self, history: Sequence[Segment], measured: Mapping[str, float]) -> Segment | None:
        """Returns the segment until the next decision, or None at the end of the run."""
        start = history[-1].end_examples if history else 0
        batch_size = history[-1].batch_size if history else self.rungs[0]
        higher = [rung for rung in self.rungs if rung > batch_size]
        if history and higher and self.factor * measured.get(NOISE_SCALE, 0.0) >= higher[0]:
            batch_size = higher[0]
        end = self.recipe.end_examples
        if history and end - start < batch_size / 2:
            return None
        # The next decision with room for at least one update before it, within half a batch.
        passed = (start + batch_size // 2) // self.decide_every
        decision = min((passed + 1) * self.decide_every, end)
        num_updates = max(1, math.floor((decision - start) / batch_size + 0.5))
        return Segment(start, num_updates, batch_size, self.recipe.momentum_at(start), start)

    def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]:
        """Returns `history`: no other segment is decided."""
        return tuple(history)

    def batch_sizes(self, history: Sequence[Segment] = ()) -> tuple[int, ...]:
        """Returns the current rung and those above it."""
        present = history[-1].batch_size if history else self.rungs[0]
        return tuple(rung for rung in self.rungs if rung >= present)


def follow(
    recipe: Recipe,
    *,
    max_batch_size: float | None = None,
    factor: float = 1.0,
    decide_every_epochs: float = 0.1,
    ladder: float = 2.0,
    batch_multiple: int = 1,
    exponent: float | None = None,
) -> FollowPlan:
    """Returns a plan that grows the batch as the measured gradient noise scale grows.

    Args:
      recipe: the recipe to follow.
      max_batch_size: the largest batch size, by default as for `grow`.
      factor: the largest ratio of the batch size to the noise scale.
      decide_every_epochs: epochs between two decisions.
      ladder: the factor of each growth.
      batch_multiple: batch sizes are multiples of this number, usually the ghost batch size.
      exponent: as for `grow`.

    Raises:
      TypeError: if `recipe` is not a `Recipe`.
      ValueError: for an option out of its range.
    """
    check_recipe(recipe)
    check_whole("batch_multiple", batch_multiple)
    if not 0 < decide_every_epochs < math.inf:
        raise ValueError(
            f"decide_every_epochs={decide_every_epochs} must be a finite number above 0"
        )
    first = nearest(recipe.batch_size, batch_multiple)
    return FollowPlan(
        recipe,
        max_batch_size=batch_limit(recipe, max_batch_size, first, batch_multiple),
        decide_every=max(1, round(decide_every_epochs * recipe.num_examples)),
        factor=factor,
        ladder=ladder,
        batch_multiple=batch_multiple,
        exponent=check_exponent(recipe, exponent, changes=True),
    )


def replay(plan: FollowPlan, noise: Sequence[tuple[float, float]]) -> FixedPlan:
    """Returns the plan that a run would have followed, had it measured these noise scales.

    Args:
      plan: decides by the noise scale.
      noise: (examples seen, noise scale) in order; each holds until the next, the last to the end.
    """
    history: list[Segment] = []
    measured: dict[str, float] = {}
    while segment := plan.next(history, measured):
        history.append(segment)
        seen = [scale for position, scale in noise if position <= segment.end_examples]
        measured = {NOISE_SCALE: seen[-1]} if seen else {}
    return from_run(plan.recipe, plan.to_dict(history), plan.exponent)


def from_run(recipe: Recipe, plan: Mapping[str, Any], exponent: float | None = None) -> FixedPlan:
    """Returns the plan that a recorded run has followed, to be used without measuring.

    Args:
      recipe: the recipe of the run.
      plan: the content of its plan.json.
      exponent: `plan.exponent` of the run; None: the optimizer's.

    Raises:
      ValueError: if the plan belongs to a training set of another size, the momentum changed during
        the run and that of the recipe does not, or a segment starts with another learning rate by
        this recipe and exponent.
    """
    if plan["num_examples"] != recipe.num_examples:
        raise ValueError(
            f"the recorded plan is for {plan['num_examples']} examples and the recipe has "
            f"{recipe.num_examples}; use the recipe of that run"
        )
    rows = plan["segments"]
    changing = any("momentum_start" in row for row in rows)
    if changing and not callable(recipe.momentum):
        raise ValueError(
            "the momentum changed during the recorded run, but the recipe has "
            f"{recipe.momentum} throughout; give the recipe its momentum as a function of the epoch"
        )
    segments = [_segment_of(row) for row in rows]
    changes = {segment.batch_size for segment in segments} != {recipe.batch_size}
    exponent = check_exponent(recipe, exponent, changes)
    curve = recipe.momentum if callable(recipe.momentum) else None
    found = FixedPlan(recipe, tuple(segments), exponent, momentum_curve=curve)
    for index, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        recorded, rate = row["learning_rate_start"], found.learning_rate_of(segment, 0)
        if not math.isclose(recorded, rate, rel_tol=1e-6, abs_tol=1e-12):
            raise ValueError(
                f"segment {index} of the recorded plan starts with the learning rate "
                f"{recorded:.6g}, but the recipe with exponent={exponent:g} has {rate:.6g} there; "
                "use the recipe and the exponent of that run"
            )
    merged: list[Segment] = []
    for new in segments:
        last = merged[-1] if merged else None
        same = last and (last.batch_size, last.momentum) == (new.batch_size, new.momentum)
        if last and same and new.nominal_start_examples <= new.start_examples:
            merged[-1] = last._replace(num_updates=last.num_updates + new.num_updates)
        else:
            merged.append(new)
    return dataclasses.replace(found, segments=tuple(merged))


def _segment_of(row: Mapping[str, Any]) -> Segment:
    """The segment of a row of plan.json (see `describe.to_dict`)."""
    start = row["start_examples"]
    nominal = row.get("nominal_start_examples", start)
    return Segment(start, row["num_updates"], row["batch_size"], row["momentum"], nominal)
