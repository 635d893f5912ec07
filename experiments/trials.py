"""Short runs without a run folder, from any state, at any batch size and rate. No flags."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

from batchgrow.config import ConfigDict
from batchgrow.engine import Engine
from batchgrow.experiment import Experiment, NoiseProbe
from batchgrow.layout import make_mesh
from batchgrow.plan import FixedPlan, Plan, Point, Segment, curves, ramp
from batchgrow.run.noise_meter import NoiseMeter
from batchgrow.step import TrainState


def piece_size_of(config: ConfigDict) -> int:
    """Returns the piece size of a config; by default a ghost batch, or a quarter of the batch."""
    quarter = max(1, (config.recipe.batch_size or 1) // 4)
    return config.noise.piece_size or config.ghost_batch_size or quarter


class Trials:
    """Updates of one experiment from states that the caller keeps. A context manager.

    Args:
      experiment: what is trained. Its plan gives the recipe and the exponent only.
      piece_size: examples of a piece in measurements of the noise.
      num_pieces: pieces of a measurement.

    Attributes:
      engine: of the experiment.

    Raises:
      ValueError: if examples come from worker processes, which read each position once.
    """

    def __init__(self, experiment: Experiment, *, piece_size: int, num_pieces: int):
        if experiment.execution.input == "workers":
            raise ValueError(
                "run.input is 'workers', which reads each example once; set it to 'resident' or "
                "'streamed'"
            )
        size = piece_size * num_pieces
        probe = NoiseProbe(piece_size, num_pieces, every=size, horizon=1e3 * size)
        self._experiment = dataclasses.replace(experiment, noise=probe)
        self.engine = Engine(self._experiment, make_mesh(experiment.execution.num_devices))

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.__exit__(*error)

    def advance(self, state: TrainState, points: Iterable[Point]) -> TrainState:
        """Returns the state after the updates at `points`, all of one batch size.

        The metric sums of the new state are those of these updates. The old state stays usable.
        """
        waiting = list(points)
        zeros = jax.tree.map(jnp.zeros_like, state.sums)
        state = jax.tree.map(jnp.copy, state).replace(sums=zeros)  # type: ignore
        if not waiting:
            return state
        update = self.engine.updates.start(waiting[0].batch_size).result()
        for start in range(0, len(waiting), update.max_updates):
            part = waiting[start : start + update.max_updates]
            batches = self.engine.feed.batch(update.dispatch_positions(part))
            state = update(state, batches, part)
        return state

    def test_loss(self, state: TrainState) -> float:
        """Returns the loss on the test set."""
        return self.engine.evaluate(self.engine.evaluation().result(), state)["loss"]

    def noise(self, state: TrainState, position: int) -> dict[str, float]:
        """Returns the noise scales at a state, by column of a row, where they are known."""
        meter = NoiseMeter(self._experiment)
        executable = self.engine.noise().result()
        meter.add(self.engine.measure_noise(executable, state, position))
        return meter.columns()


def mean_loss(state: TrainState) -> float:
    """Returns the mean training loss of the updates that the state's sums are of."""
    return float(state.sums["loss"]) / float(state.sums["count"])


def constant_plan(plan: Plan, batch_size: int, learning_rate: float, num_updates: int) -> FixedPlan:
    """Returns the plan of updates of one batch size at one learning rate.

    Args:
      plan: gives the recipe.
    """
    num_examples = plan.recipe.num_examples
    recipe = dataclasses.replace(
        plan.recipe,
        batch_size=batch_size,
        curve=curves.constant(learning_rate),
        num_epochs=num_updates * batch_size / num_examples,
    )
    return FixedPlan(recipe, (Segment(0, num_updates, batch_size, recipe.momentum_at(0), 0),))


def branch_points(
    plan: Plan,
    history: Sequence[Segment],
    position: int,
    batch_size: int,
    num_examples: int,
    shift: int = 0,
) -> list[Point]:
    """Returns the updates of a branch, with the learning rate coupled to its batch size.

    Args:
      plan: gives the recipe and the exponent.
      history: the segments of the run up to `position`.
      position: where the branch leaves the run, the end of an update.
      batch_size: of the branch.
      num_examples: of the branch; a multiple of `batch_size`.
      shift: how much later in the stream the examples are taken.

    Raises:
      ValueError: if the recipe ends before the branch does.
    """
    if position + num_examples > plan.recipe.end_examples:
        raise ValueError(
            f"a branch of {num_examples} examples from {position} would pass the end of the recipe "
            f"at {plan.recipe.end_examples}; take fewer --examples, or an earlier checkpoint"
        )
    stages = {s.start_examples: s.batch_size for s in history if s.start_examples < position}
    made = ramp(
        plan.recipe,
        [*stages.items(), (position, batch_size)],
        exponent=plan.exponent,
        momentum=plan.momentum_curve or history[-1].momentum,
    )
    points = islice(made.points(position), num_examples // batch_size)
    return [point._replace(start_examples=point.start_examples + shift) for point in points]


def largest_within(losses: dict[int, float], tolerance: float) -> int:
    """Returns the largest batch up to which no loss exceeds the smallest batch's by `tolerance`.

    Args:
      losses: batch size -> loss of its branch; NaN if it diverged.
      tolerance: in the unit of the loss.
    """
    sizes = sorted(losses)
    largest = sizes[0]
    for size in sizes[1:]:
        difference = losses[size] - losses[sizes[0]]
        if math.isnan(difference) or difference > tolerance:
            return largest
        largest = size
    return largest


def compared(losses: dict[int, list[float]], tolerance: float) -> dict[str, Any]:
    """Returns how the branches from one checkpoint compare with the first of them, as plain JSON.

    Args:
      losses: batch size -> loss of each repeat, the smallest batch first.
      tolerance: as in `largest_within`.

    Returns:
      {"branches": [{"batch_size", "losses", "loss", "difference", "stdev"}], "critical_batch_size",
      "is_bounded"}. "loss" is the mean, "difference" that from the first branch, and "stdev" that
      of the differences. What is not finite is None. If the first branch diverged, so is the
      critical batch size.
    """
    first = next(iter(losses.values()))
    found = []
    for size, values in losses.items():
        differences = [a - b for a, b in zip(values, first, strict=True)]
        is_finite = all(map(math.isfinite, differences))
        found.append(
            {
                "batch_size": size,
                "losses": [value if math.isfinite(value) else None for value in values],
                "loss": statistics.fmean(values) if all(map(math.isfinite, values)) else None,
                "difference": statistics.fmean(differences) if is_finite else None,
                "stdev": statistics.stdev(differences) if is_finite and len(values) > 1 else None,
            }
        )
    means = {row["batch_size"]: math.nan if row["loss"] is None else row["loss"] for row in found}
    largest = None if found[0]["loss"] is None else largest_within(means, tolerance)
    return {
        "branches": found,
        "critical_batch_size": largest,
        "is_bounded": largest is not None and largest < max(losses),
    }


def branch_length(num_examples: int, sizes: list[int]) -> int:
    """Returns the examples of a branch: four equal parts of whole updates of each batch size.

    Raises:
      ValueError: if the largest batch would make fewer than four updates.
    """
    part = math.lcm(*sizes)
    if num_examples < 4 * part:
        raise ValueError(
            f"--examples={num_examples} are fewer than 4 updates of {sizes[-1]}; take {4 * part} "
            "or more, or fewer --multiples"
        )
    return num_examples // (4 * part) * 4 * part


def tune(steps_at: Callable[[float], float], start: float) -> dict[float, float]:
    """Returns rate -> steps on a grid of factors of 2 whose best rate is not at its edge.

    The grid grows by 8 rates at most: lower ones as long as no rate reaches the target.

    Args:
      steps_at: the steps with a rate; inf if the target is not reached.
      start: the middle of the first three rates.
    """
    found = {rate: steps_at(rate) for rate in (start / 2, start, 2 * start)}
    for _ in range(8):
        best = min(found, key=lambda rate: (found[rate], abs(math.log(rate / start))))
        if math.isinf(found[best]):
            best = min(found)
        if min(found) < best < max(found):
            break
        rate = 2 * best if best == max(found) else best / 2
        found[rate] = steps_at(rate)
    return found
