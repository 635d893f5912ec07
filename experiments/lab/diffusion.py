"""The distance from the start against the number of updates, at a high constant rate."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.lab.setups import small_mnist, updates_of
from experiments.lab.study import Arm, Number, Study, Trial, Verdict, chart, measured_line, number

BATCHES = (16, 64, 256)
NUM_UPDATES = 2000
RATE = 0.05  # at the smallest batch; times the square root of the batch's multiple


def config() -> Any:
    made = small_mnist()
    made.trace.per_decade = 8
    return made


def arms() -> list[Arm]:
    return [
        Arm(
            {"batch": batch, "rate": rate},
            {
                "recipe.batch_size": batch,
                "recipe.learning_rate": RATE * (batch / BATCHES[0]) ** power,
                "recipe.num_epochs": updates_of(config(), NUM_UPDATES, batch),
                "log_every_epochs": 1e6,
            },
        )
        for batch in BATCHES
        for rate, power in (("fixed", 0.0), ("sqrt", 0.5))
        if rate == "fixed" or batch > BATCHES[0]
    ]


def course(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Updates and distances of the traced rows from the tenth update on."""
    assert trial.run
    rows = [row for row in trial.run.rows if row["updates"] >= 10]
    return np.array([r["updates"] for r in rows]), np.array([r["distance"] for r in rows])


def fits(updates: np.ndarray, distance: np.ndarray) -> tuple[float, float, float]:
    """R^2 of distance = a + b log t and of log distance = a + p log t, and p."""
    log = np.log(updates)

    def explained(fitted: np.ndarray) -> float:
        return float(1 - np.var(distance - fitted) / np.var(distance))

    straight = np.polyval(np.polyfit(log, distance, 1), log)
    power = np.polyfit(log, np.log(distance), 1)
    return explained(straight), explained(np.exp(np.polyval(power, log))), float(power[0])


def judge(trials: Sequence[Trial]) -> Verdict:
    trials = [trial for trial in trials if trial.run]
    numbers: list[Number] = []
    lines: dict[str, list[dict[str, Any]]] = {"fixed": [], "sqrt": []}
    power = []
    for batch, rate in dict.fromkeys((t.labels["batch"], t.labels["rate"]) for t in trials):
        chosen = [t for t in trials if (t.labels["batch"], t.labels["rate"]) == (batch, rate)]
        found = [fits(*course(trial)) for trial in chosen]
        label = f"batch {batch}"
        names = ("R² of log t", "R² of a power of t", "fitted power")
        for what, values in zip(names, zip(*found, strict=True), strict=True):
            numbers.append(number(f"{what}, {label}, {rate} rate", values))
        power += [(of_log, of_power) for of_log, of_power, _ in found]
        updates = course(chosen[0])[0]
        distances = np.array([course(trial)[1] for trial in chosen]).T
        samples = {int(t): list(d) for t, d in zip(updates, distances, strict=True)}
        for axis in ("fixed", "sqrt") if batch == BATCHES[0] else (rate,):
            lines[axis].append(measured_line(f"{label}, {axis} rate", samples))
    better = sum(of_log > of_power for of_log, of_power in power)
    charts = [
        chart(f"Distance from the start, {name}", "updates", "distance", lines[axis])
        for axis, name in (("fixed", "one rate"), ("sqrt", "rate times root of batch"))
    ]
    ends = {
        axis: [entry["points"][-1]["mean"] for entry in lines[axis]] for axis in ("fixed", "sqrt")
    }
    return Verdict(
        numbers,
        charts,
        f"log t fits better than a power of t in {better} of {len(power)} runs; after "
        f"{NUM_UPDATES:,} updates the largest distance of the batches is "
        f"{max(ends['sqrt']) / min(ends['sqrt']):.2f} times the smallest with the square-root rate "
        f"and {max(ends['fixed']) / min(ends['fixed']):.2f} times with one rate.",
    )


STUDY = Study(
    claim="At a high rate the distance from the start grows with the logarithm of the number of "
    "updates, alike for all batch sizes if the rate grows with the root of the batch.",
    source="Hoffer et al. 2017",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="10,000 examples of MNIST (theirs: CIFAR-10 and ImageNet), one hidden layer of 128 ReLUs, "
    "SGD without momentum or weight decay, 2,000 updates; fits from the tenth update on. The "
    "square-root rate brings the distances no nearer to each other. It is 0.05 at batch 16 and 0.2 "
    "at batch 256, half of the rate that batch 256 has in Constant noise, where it trains.",
)
