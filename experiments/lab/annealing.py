"""Step, cosine and exponential decay, each by a falling rate or by a growing batch."""

from collections.abc import Sequence
from typing import Any

from experiments.lab.setups import small_mnist
from experiments.lab.study import (
    Arm,
    Facts,
    Number,
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
    made.plan.max_batch_size = 1000.0  # Without a limit the batch of a smooth curve hardly grows.
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
        "Test accuracy minus that of steps, in points: by the rate "
        f"{_listed(smooth['cosine', 'rate'], smooth['exponential', 'rate'])}; by the batch "
        f"{_listed(smooth['cosine', 'batch'], smooth['exponential', 'batch'])}. A growing batch "
        f"instead of a falling rate changes {', '.join(COUNTED)} by "
        f"{', '.join(in_points(entry) for entry in grown)}.",
    )


def _listed(cosine: Number, exponential: Number) -> str:
    return f"cosine {in_points(cosine)}, exponential {in_points(exponential)}"


STUDY = Study(
    claim="Smooth annealing of the noise beats steps, by the rate and by the batch alike.",
    source="a lecture on optimizers; Smith et al. 2018, Section 2, for annealing by the batch",
    config=config,
    arms=arms(),
    seeds=5,
    judge=judge,
    note="10,000 examples of MNIST, one hidden layer of 128 ReLUs, momentum 0.9, 12 epochs; every "
    "curve starts at 0.05, and steps and exponential fall by 125 in all. The batch grows from 32 "
    "to at most 1,000, a tenth of the examples; then the rate falls.",
)
