"""The sum of gradients after the start and after each growth, against 1 - m^t."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.lab.setups import small_mnist
from experiments.lab.study import (
    Arm,
    Study,
    Trial,
    Verdict,
    chart,
    in_points,
    measured_line,
    number,
    paired,
    reference,
    values_of,
)

MOMENTA = (0.9, 0.98)
RATE, BATCH, NUM_EPOCHS = 0.1, 32, 24.0  # of the recipe, at momentum 0.9
STEADY = 3.0  # time constants 1/(1-m) after which the sum is called steady


def config() -> Any:
    made = small_mnist()
    made.optimizer.name = "momentum"
    made.recipe.curve = "step"
    made.recipe.learning_rate = RATE / 10
    made.recipe.batch_size = BATCH
    made.recipe.num_epochs = NUM_EPOCHS
    made.recipe.boundaries_epochs = (NUM_EPOCHS / 2, 3 * NUM_EPOCHS / 4)
    made.recipe.factor = 0.2
    made.plan.name = "grow"
    made.plan.max_batch_size = 4000.0
    made.trace.per_decade = 10
    return made


def arms() -> list[Arm]:
    made = [
        Arm(
            {"momentum": momentum, "epochs": epochs},
            {
                "plan.momentum": None if momentum == MOMENTA[0] else momentum,
                "recipe.num_epochs": epochs,
                "recipe.boundaries_epochs": (epochs / 2, 3 * epochs / 4),
            },
        )
        for epochs in (NUM_EPOCHS / 4, NUM_EPOCHS)
        for momentum in MOMENTA
    ]
    return made


def course(trial: Trial, segment: int) -> list[tuple[int, float]]:
    """(updates since the start of the segment, norm of the step over its steady value)."""
    assert trial.run
    rows = [row for row in trial.run.rows if row["segment"] == segment]
    before = [row["updates"] for row in trial.run.rows if row["segment"] < segment]
    start = max(before, default=0)
    points = [(row["updates"] - start, row["step_norm"]) for row in rows]
    late = [norm for t, norm in points if t >= STEADY / (1 - trial.labels["momentum"])]
    return [(t, norm / float(np.median(late))) for t, norm in points] if late else []


def judge(trials: Sequence[Trial]) -> Verdict:
    trials = [trial for trial in trials if trial.run]
    numbers, charts = [], []
    for momentum in MOMENTA:
        lines = []
        for segment in (0, 1):
            samples: dict[int, list[float]] = {}
            for trial in trials:
                if trial.labels["momentum"] == momentum and trial.labels["epochs"] == NUM_EPOCHS:
                    for t, value in course(trial, segment):
                        samples.setdefault(t, []).append(value)
            label = "from the start" if segment == 0 else "after the first growth"
            shown = {t: v for t, v in sorted(samples.items()) if t <= 5 / (1 - momentum)}
            lines.append(measured_line(label, shown))
            for t in [*shown][:1]:
                what = f"step {t} over the steady one, m = {momentum:g}, {label}"
                numbers.append(number(what, shown[t], f"{1 - momentum**t:.2g}", "computed"))
        times = sorted({point["x"] for entry in lines for point in entry["points"]})
        lines.append(reference("1 - m^t", [(t, 1 - momentum**t) for t in times]))
        title = f"Norm of a step over its steady value, m = {momentum:g}"
        charts.append(chart(title, "updates", "relative norm", lines))
    gaps = {
        epochs: paired(
            f"test accuracy at m = 0.98 minus at 0.9, {epochs:g} epochs",
            *(
                values_of(trials, "test_accuracy", momentum=momentum, epochs=epochs)
                for momentum in MOMENTA
            ),
            source="-0.010 (200 epochs of CIFAR-10)",
            sure="computed",
        )
        for epochs in (NUM_EPOCHS / 4, NUM_EPOCHS)
    }
    parts = [f"{in_points(gap)} points in {epochs:g} epochs" for epochs, gap in gaps.items()]
    firsts = [entry.ours for entry in numbers if entry.ours is not None]
    return Verdict(
        [*numbers, *gaps.values()],
        charts,
        f"The first steps of a segment are {min(firsts):.2f} to {max(firsts):.2f} of the steady "
        f"norm; momentum 0.98 in place of 0.9, with five times the batch, changes test accuracy by "
        f"{' and by '.join(parts)}.",
    )


STUDY = Study(
    claim="After a start the sum of gradients needs B / (N (1 - m)) epochs to build up, and steps "
    "are suppressed meanwhile, as 1 - m^t.",
    source="Smith et al. 2018, Section 3; test accuracies of Section 5.2",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="10,000 examples of MNIST, one hidden layer of 128 ReLUs, a recipe of batch 32 and "
    "momentum 0.9 whose rate falls by 5 twice, paid for by a growing batch.",
)
