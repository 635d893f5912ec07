"""Small, large and growing batches on F1: the generalization gap and the sharpness."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.lab import solutions
from experiments.lab.setups import small_f1
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
    values_of,
    with_interval,
)

NUM_EXAMPLES, NUM_EPOCHS = 10_240, 15
SMALL, LARGE = 128, 1024  # a tenth of the training set
EPSILONS = (1e-3, 5e-4)
MEASURED = 2000  # training examples for the sharpness
SHARPNESS = {  # of F1 in Keskar et al., Table 4, A = I
    ("small", 1e-3): "1.23 ± 0.83",
    ("large", 1e-3): "205.14 ± 69.52",
    ("small", 5e-4): "0.61 ± 0.27",
    ("large", 5e-4): "42.90 ± 17.14",
}
ACCURACY = {  # of F1, Table 2
    ("small", "train"): "0.9966 ± 0.0005",
    ("large", "train"): "0.9992 ± 0.0001",
    ("small", "test"): "0.9803 ± 0.0007",
    ("large", "test"): "0.9781 ± 0.0007",
}


def config() -> Any:
    made = small_f1(NUM_EXAMPLES)
    made.recipe.num_epochs = float(NUM_EPOCHS)
    return made


def arms() -> list[Arm]:
    middle = NUM_EXAMPLES * NUM_EPOCHS // 2
    return [
        Arm({"batch": "small"}, {"recipe.batch_size": SMALL, "ghost_batch_size": SMALL}),
        Arm({"batch": "large"}, {"recipe.batch_size": LARGE, "ghost_batch_size": LARGE}),
        Arm(
            {"batch": "growing"},
            {
                "recipe.batch_size": SMALL,
                "ghost_batch_size": SMALL,
                "plan.name": "ramp",
                "plan.batches": f"0:{SMALL} {middle}:{LARGE}",
                "plan.exponent": 0.0,
            },
        ),
    ]


def measure(folder: str) -> Mapping[str, Any]:
    return solutions.measure(folder, list(EPSILONS), MEASURED, num_steps=10)


def judge(trials: Sequence[Trial]) -> Verdict:
    trials = [trial for trial in trials if trial.run]
    names = list(dict.fromkeys(trial.labels["batch"] for trial in trials))
    numbers = []
    for part in ("train", "test"):
        for name in names:
            values = values_of(trials, f"{part}_accuracy", batch=name).values()
            source = ACCURACY.get((name, part), "")
            numbers.append(
                number(f"{part} accuracy, {name} batch", values, source, source and "read")
            )
    gap = paired(
        "test accuracy, large minus small",
        *(values_of(trials, "test_accuracy", batch=name) for name in ("small", "large")),
        source="-0.0022",
        sure="computed",
    )
    numbers.append(gap)
    sharp = {
        (name, epsilon): [
            t.measured["sharpness"][f"{epsilon:g}"] for t in trials if t.labels["batch"] == name
        ]
        for epsilon in EPSILONS
        for name in names
    }
    for (name, epsilon), values in sharp.items():
        source = SHARPNESS.get((name, epsilon), "")
        what = f"sharpness at {epsilon:g}, {name} batch"
        numbers.append(number(what, values, source, source and "read"))
    largest = {
        name: [t.measured["eigenvalues"][0] for t in trials if t.labels["batch"] == name]
        for name in names
    }
    for name, values in largest.items():
        numbers.append(number(f"largest eigenvalue of the Hessian, {name} batch", values))
    large, small, growing = (
        with_interval(number("", sharp.get((name, EPSILONS[0]), [])))
        for name in ("large", "small", "growing")
    )
    accuracy = {name: [*values_of(trials, "test_accuracy", batch=name).values()] for name in names}
    at_first = {name: sharp[name, EPSILONS[0]] for name in names}
    return Verdict(
        numbers,
        [
            chart("Test accuracy", "batch", "test accuracy", [measured_line("test", accuracy)]),
            chart(
                f"Sharpness at {EPSILONS[0]:g}",
                "batch",
                "sharpness",
                [measured_line("sharpness", at_first)],
            ),
        ],
        f"The test accuracy of the large batch minus that of the small one is {in_points(gap)} "
        f"points. The sharpness of its solution is {large}, that of the small batch {small}, and "
        f"that of the growing batch {growing}.",
    )


STUDY = Study(
    claim="Large batches train as well and generalize worse, because they find sharp minima.",
    source="Keskar et al. 2017, network F1",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    measure=measure,
    note="10,240 examples of MNIST (theirs: 60,000), Adam, 15 epochs for every arm, batches of 128 "
    "and of a tenth of the training set (theirs: 256 and a tenth); batch norm over the whole "
    "batch, over 128 for the growing one. Sharpness on 2,000 training examples in evaluation mode, "
    "L-BFGS-B from a random point of the box. It is at least 0: an interval that begins below 0 "
    "comes from seeds that lie far apart. In the recorded runs the intervals overlap, so no order "
    "is shown, and the largest eigenvalue is ten times as large for the small batch, against the "
    "claim; that batch has not fitted its training set yet. The growing batch goes from 128 to "
    "1,024 at half-time, at the same learning rate.",
)
