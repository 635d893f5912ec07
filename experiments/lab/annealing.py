"""Step, cosine and exponential decay, each by a falling rate or by a growing batch."""

from collections.abc import Sequence
from typing import Any

from experiments.lab.setups import small_mnist
from experiments.lab.study import (
    Arm,
    Facts,
    Study,
    Trial,
    Verdict,
    chart,
    in_points,
    line,
    number,
    paired,
    values_of,
)

CURVES = {
    "step": {"recipe.curve": "step", "recipe.factor": 0.2},
    "cosine": {"recipe.curve": "cosine"},
    "exponential": {"recipe.curve": "exponential"},
    "constant": {"recipe.curve": "constant"},
}
NUM_EPOCHS = 12.0
COUNTED = ("step", "cosine", "exponential")


def config() -> Any:
    made = small_mnist()
    made.optimizer.name = "momentum"
    made.recipe.learning_rate = 0.05
    made.recipe.batch_size = 32
    made.recipe.num_epochs = NUM_EPOCHS
    made.recipe.boundaries_epochs = tuple(part * NUM_EPOCHS for part in (0.3, 0.6, 0.8))
    made.recipe.decay_rate = 125 ** (-1 / NUM_EPOCHS)  # as far as the three steps
    return made


def arms() -> list[Arm]:
    return [
        Arm({"curve": curve, "by": by}, changes | {"plan.name": plan})
        for curve, changes in CURVES.items()
        for by, plan in (("rate", "decay"), ("batch", "grow"))
        if curve != "constant" or by == "rate"
    ]


def judge(trials: Sequence[Trial]) -> Verdict:
    accuracy = {
        (arm.labels["curve"], arm.labels["by"]): values_of(trials, "test_accuracy", **arm.labels)
        for arm in arms()
    }
    numbers = [
        number(f"test accuracy, {curve} by the {by}", values.values())
        for (curve, by), values in accuracy.items()
    ]
    smooth = {
        (curve, by): paired(
            f"{curve} minus step, by the {by}", accuracy["step", by], accuracy[curve, by]
        )
        for curve in COUNTED[1:]
        for by in ("rate", "batch")
    }
    grown = [
        paired(f"batch minus rate, {curve}", accuracy[curve, "rate"], accuracy[curve, "batch"])
        for curve in COUNTED
    ]

    def panel(part: str) -> Facts:
        y = f"{part}_accuracy"
        lines = [line(trials, f"by the {by}", "curve", y, by=by) for by in ("rate", "batch")]
        return chart(f"{part.capitalize()} accuracy by curve", "curve", y, lines)

    return Verdict(
        [*numbers, *smooth.values(), *grown],
        [panel("train"), panel("test")],
        f"Decayed by the rate, cosine ends {in_points(smooth['cosine', 'rate'])} points of test "
        f"accuracy from the steps and exponential {in_points(smooth['exponential', 'rate'])}. A "
        f"growing batch instead of a falling rate changes {', '.join(COUNTED)} by "
        f"{', '.join(in_points(entry) for entry in grown)}.",
    )


STUDY = Study(
    claim="Smooth annealing of the noise beats steps, by the rate and by the batch alike.",
    source="a lecture on optimizers; Smith et al. 2018, Section 2, for annealing by the batch",
    config=config,
    arms=arms(),
    seeds=5,
    judge=judge,
    note="10,000 examples of MNIST, one hidden layer of 128 ReLUs, momentum 0.9, 12 epochs; every "
    "curve starts at 0.05, and steps and exponential fall by 125 in all.",
)
