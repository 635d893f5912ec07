"""The arms of Hoffer et al.: small batch, large batch, higher rate, ghost norm, longer."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.lab.setups import small_f1
from experiments.lab.study import (
    Arm,
    Facts,
    Study,
    Trial,
    Verdict,
    chart,
    in_points,
    measured_line,
    number,
    paired,
    values_of,
)

NUM_EXAMPLES, NUM_EPOCHS = 4096, 10
SMALL, LARGE = 32, 512
RATE = 0.05
GHOSTS = (16, 32, 128, 512)
# validation accuracy of F1, Table 1
SOURCE = {
    "small": ("0.9827", "read"),
    "large": ("0.9705", "read"),
    "+ rate": ("0.9755", "unverified"),
    "+ ghost": ("0.9760", "unverified"),
    "+ longer": ("0.9853", "read"),
}


def config() -> Any:
    made = small_f1(NUM_EXAMPLES)
    made.model.features = (128, 128)
    made.optimizer.name = "momentum"
    made.recipe.curve = "step"
    made.recipe.factor = 0.1
    return made


def arms() -> list[Arm]:
    def rung(name: str, batch: int, ghost: int, rate: float, longer: int) -> Arm:
        epochs = float(NUM_EPOCHS * longer)
        return Arm(
            {"step": name},
            {
                "recipe.batch_size": batch,
                "ghost_batch_size": ghost,
                "recipe.learning_rate": rate,
                "recipe.num_epochs": epochs,
                "recipe.boundaries_epochs": (epochs / 2, 3 * epochs / 4),
            },
        )

    multiple = LARGE // SMALL
    high = RATE * math.sqrt(multiple)
    ladder = [
        rung("small", SMALL, SMALL, RATE, 1),
        rung("large", LARGE, LARGE, RATE, 1),
        rung("+ rate", LARGE, LARGE, high, 1),
        rung("+ ghost", LARGE, SMALL, high, 1),
        rung("+ longer", LARGE, SMALL, high, multiple),
    ]
    others = [ghost for ghost in GHOSTS if ghost not in (SMALL, LARGE)]
    return ladder + [rung(f"ghost {ghost}", LARGE, ghost, high, 1) for ghost in others]


def judge(trials: Sequence[Trial]) -> Verdict:
    accuracy = {
        arm.labels["step"]: values_of(trials, "test_accuracy", step=arm.labels["step"])
        for arm in arms()
    }
    numbers = [
        number(f"test accuracy, {name}", accuracy[name].values(), *SOURCE.get(name, ("", "")))
        for name in accuracy
    ]
    gaps = {
        name: paired(f"{name} minus small", accuracy["small"], accuracy[name])
        for name in SOURCE
        if name != "small"
    }
    by_ghost = {
        ghost: accuracy.get({SMALL: "+ ghost", LARGE: "+ rate"}.get(ghost, f"ghost {ghost}"), {})
        for ghost in GHOSTS
    }

    def panel(title: str, x: str, samples: dict[Any, dict[int, float]]) -> Facts:
        of_x = {place: [*values.values()] for place, values in samples.items()}
        return chart(title, x, "test accuracy", [measured_line("test", of_x)])

    said = ", ".join(f"{name} {in_points(gap)}" for name, gap in gaps.items())
    return Verdict(
        [*numbers, *gaps.values()],
        [
            panel("The ladder", "step", {name: accuracy[name] for name in SOURCE}),
            panel(f"Ghost batch size at batch {LARGE}", "ghost batch", by_ghost),
        ],
        f"Against the small batch, in points of test accuracy: {said}.",
    )


STUDY = Study(
    claim="A higher rate, ghost batch norm and training for as many updates as the small batch "
    "close the generalization gap of a large batch.",
    source="Hoffer et al. 2017, Table 1, F1 on MNIST",
    config=config,
    arms=arms(),
    seeds=5,
    judge=judge,
    note="4,096 examples of MNIST (theirs: 60,000), two hidden layers of 128 with batch norm, "
    "momentum 0.9, batches of 32 and 512 (theirs: 128 and 4,096), 10 epochs for the small batch. "
    "'ghost 16' and 'ghost 128' are '+ ghost' with other ghost batches.",
)
