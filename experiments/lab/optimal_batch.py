"""The best batch size against learning rate, training set size and momentum."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from experiments.lab.setups import part_of_mnist, small_mnist, updates_of
from experiments.lab.study import (
    Arm,
    Number,
    Study,
    Trial,
    Verdict,
    chart,
    line,
    measured_line,
    reference,
    values_of,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NUM_UPDATES = 2000
BASE = {"rate": 0.25, "examples": 1000, "momentum": 0.0}
# Each axis changes one of them; the best batch should be proportional to `PREDICTED` of it.
AXES: dict[str, tuple[float, ...]] = {
    "rate": (0.125, 0.25, 0.5, 1.0),
    "examples": (500, 1000, 2000, 4000),
    "momentum": (0.0, 0.5, 0.75),
}
PREDICTED = {
    "rate": lambda rate: rate,
    "examples": lambda examples: examples,
    "momentum": lambda momentum: 1 / (1 - momentum),
}
NAMES = {"rate": "lr", "examples": "N", "momentum": "1/(1-m)"}
# The source's measure of a batch, and ours beside it; the factor makes lower better.
METRICS = {"test_accuracy": -1, "test_loss": 1}


def config() -> Any:
    made = small_mnist(features=(100,))
    made.task.mean = made.task.std = None  # pixels from 0 to 1
    made.optimizer.name = "momentum"
    return made


def settings() -> list[dict[str, float]]:
    """The base and every value of every axis, each once."""
    made = [BASE | {axis: value} for axis, values in AXES.items() for value in values]
    return [setting for index, setting in enumerate(made) if setting not in made[:index]]


def arms() -> list[Arm]:
    made = []
    for setting in settings():
        for batch in BATCHES:
            part = config()
            part_of_mnist(part, int(setting["examples"]))
            changes = {
                "data.train_split": part.data.train_split,
                "data.num_train_examples": part.data.num_train_examples,
                "recipe.learning_rate": setting["rate"],
                "recipe.momentum": setting["momentum"],
                "recipe.batch_size": batch,
                "recipe.num_epochs": updates_of(part, NUM_UPDATES, batch),
                "log_every_epochs": updates_of(part, NUM_UPDATES // 5, batch),
            }
            made.append(Arm(setting | {"batch": batch}, changes))
    return made


def best_batch(losses: Mapping[int, float]) -> float | None:
    """Returns the minimum of the parabola through the lowest value and those beside it.

    The parabola is over log2 of the batch. It is None if the lowest value is at the first or the
    last batch that did not diverge.

    Args:
      losses: batch -> a value that is lower for better batches.
    """
    batches = sorted(losses)
    lowest = min(range(len(batches)), key=lambda i: losses[batches[i]], default=0)
    if not 0 < lowest < len(batches) - 1:
        return None
    near = batches[lowest - 1 : lowest + 2]
    a, b, _ = np.polyfit(np.log2(near), [losses[batch] for batch in near], 2)
    return float(2 ** np.clip(-b / (2 * a), *np.log2([near[0], near[-1]]))) if a > 0 else None


def slope_of(points: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """The exponent p of y ~ x^p with its 95 % t-interval; None for fewer than three points."""
    if len(points) < 3:
        return None
    x, y = np.log(np.array(points)).T
    fit: Any = stats.linregress(x, y)
    half = float(special.stdtrit(len(points) - 2, 0.975) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def judge(trials: Sequence[Trial]) -> Verdict:
    numbers, said = [], []
    charts = [_chart(trials, axis) for axis in AXES]
    for metric in METRICS:
        bests = {axis: _bests(trials, axis, metric) for axis in AXES}
        for axis, found in bests.items():
            points = [(PREDICTED[axis](v), best) for v, some in found.items() for best in some]
            slope = slope_of(points)
            what = f"exponent in {NAMES[axis]} of the batch with the best {metric}"
            what = what.replace("_", " ")
            numbers.append(
                Number(what, *(slope or (None,)), n=len(points), source="1", sure="read")
            )
            shown = "unknown" if slope is None else "{:.2f} ({:.2f} to {:.2f})".format(*slope)
            if metric == "test_accuracy":
                said.append(f"{NAMES[axis]} {shown}")
        if metric == "test_accuracy":
            charts.append(_best_chart(bests))
    return Verdict(
        numbers,
        charts,
        f"The fitted exponents of the batch with the highest test accuracy are: {', '.join(said)}; "
        "the claim is 1 for each.",
    )


def _bests(trials: Sequence[Trial], axis: str, metric: str) -> dict[float, list[float]]:
    """Value of the axis -> the best batch of each seed that has one inside of the grid."""
    bests = {}
    for value in AXES[axis]:
        of_batch = {
            batch: values_of(trials, metric, **(BASE | {axis: value, "batch": batch}))
            for batch in BATCHES
        }
        seeds = sorted({seed for of_seed in of_batch.values() for seed in of_seed})
        found = [
            best_batch({b: METRICS[metric] * of[seed] for b, of in of_batch.items() if seed in of})
            for seed in seeds
        ]
        bests[value] = [best for best in found if best is not None]
    return bests


def _chart(trials: Sequence[Trial], axis: str) -> dict[str, Any]:
    lines = [
        line(trials, f"{axis} {value:g}", "batch", "test_loss", **(BASE | {axis: value}))
        for value in AXES[axis]
    ]
    return chart(f"Test loss by batch, for each {axis}", "batch", "test_loss", lines)


def _best_chart(bests: Mapping[str, Mapping[float, Sequence[float]]]) -> dict[str, Any]:
    lines = []
    for axis, found in bests.items():
        base = PREDICTED[axis](BASE[axis])
        points = {PREDICTED[axis](value) / base: some for value, some in found.items()}
        lines.append(measured_line(f"against {NAMES[axis]}", points))
    start = bests["rate"][BASE["rate"]]
    if start:
        mean = float(np.mean(start))
        lines.append(reference("proportional", [(x, mean * x) for x in (0.5, 1.0, 2.0, 4.0)]))
    return chart(
        "Best batch against what it should follow",
        "lr, N or 1/(1-m), relative to the base",
        "best batch",
        lines,
    )


STUDY = Study(
    claim="The best batch size is proportional to the learning rate, to the size of the training "
    "set and to 1 / (1 - m).",
    source="Smith & Le 2017",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="One hidden layer of 100 ReLUs (theirs: 800), 2,000 updates for every batch, the batch "
    "with the best test accuracy at the end by a parabola in the logarithm of the batch, for each "
    "seed. n counts these batches; the interval is that of the slope of a straight line. The "
    "metric, the three points of the parabola and the kind of interval were chosen after a look "
    "at the first seed, so the intervals are optimistic. A best batch at an end of the grid (1 or "
    "256) is left out. At rate 1 that is so for both recorded seeds, so the exponent in lr comes "
    "from the rates 0.125 to 0.5.",
)
