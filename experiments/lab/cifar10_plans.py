"""The plans of Smith et al., Sections 5.1 and 5.2, with the paper's batches."""

from collections.abc import Mapping, Sequence
from typing import Any

from configs import cifar10
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

TRIED: Mapping[str, Sequence[float]] = {
    "momentum": (0.1, 0.2, 0.4, 0.8),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
TUNING_EPOCHS = 4.0
SHORT_EPOCHS = 0.25
RATES = {"momentum": 0.4, "adam": 0.01}  # the best of those tried, which a test compares
SECTION_5_1 = ("decaying_lr", "hybrid", "increasing_batch")
SECTION_5_2 = ("increasing_batch_5120", "increased_lr", "increased_momentum")
PLANS = (*SECTION_5_1, *SECTION_5_2)
MOMENTUM = {"optimizer": "momentum"}
SOURCE = {
    "decaying_lr": "0.943",
    "increasing_batch_5120": "0.944",
    "increased_lr": "0.945",
    "increased_momentum": "0.933",
}


def config() -> Any:
    """A WRN-10-1 and all of CIFAR-10, batches from 128 to 16,000, 50 epochs."""
    made = cifar10.get_config("decaying_lr,short")
    made.run.num_devices = 1
    made.run.max_microbatch_size = 640
    return made


def arms() -> list[Arm]:
    def changes(optimizer: str, rate: float, plan: str) -> dict[str, Any]:
        names = ("name", "max_batch_size", "initial_multiple", "momentum")
        chosen = cifar10.get_config(plan).plan
        made = {"optimizer.name": optimizer, "recipe.learning_rate": rate}
        return made | {f"plan.{name}": chosen[name] for name in names}

    tuning = [
        Arm(
            {"optimizer": optimizer, "tried": rate},
            changes(optimizer, rate, "decaying_lr")
            | {
                "recipe.num_epochs": TUNING_EPOCHS,
                "recipe.boundaries_epochs": tuple(part * TUNING_EPOCHS for part in (0.3, 0.6, 0.8)),
            },
        )
        for optimizer, rates in TRIED.items()
        for rate in rates
    ]
    compared = [
        Arm({"optimizer": optimizer, "plan": plan}, changes(optimizer, rate, plan))
        for optimizer, rate in RATES.items()
        for plan in (*SECTION_5_1, *(SECTION_5_2 if optimizer == "momentum" else ()))
    ]
    return [*tuning, *compared]


def judge(trials: Sequence[Trial]) -> Verdict:
    compared = [arm.labels for arm in arms() if "plan" in arm.labels]
    accuracy = {
        (labels["optimizer"], labels["plan"]): values_of(trials, "test_accuracy", **labels)
        for labels in compared
    }
    numbers = [
        number(f"test accuracy, {plan}, {optimizer}", values.values(), *_source(optimizer, plan))
        for (optimizer, plan), values in accuracy.items()
    ]
    gaps = {
        (optimizer, plan): paired(
            f"{plan} minus decaying_lr, {optimizer}", accuracy[optimizer, "decaying_lr"], values
        )
        for (optimizer, plan), values in accuracy.items()
        if plan != "decaying_lr"
    }
    updates = [
        number(
            f"updates, {plan}",
            [
                trial.run.rows[-1]["updates"]
                for trial in trials
                if trial.run and trial.labels == MOMENTUM | {"plan": plan}
            ],
        )
        for plan in PLANS
    ]
    tried = [
        number(
            f"test accuracy, {optimizer} at {rate:g}, {TUNING_EPOCHS:g} epochs",
            values_of(trials, "test_accuracy", optimizer=optimizer, tried=rate).values(),
        )
        for optimizer, rates in TRIED.items()
        for rate in rates
    ]
    said = {
        optimizer: ", ".join(
            f"{plan} {in_points(gap)}" for (o, plan), gap in gaps.items() if o == optimizer
        )
        for optimizer in RATES
    }
    return Verdict(
        [*numbers, *gaps.values(), *updates, *tried],
        [
            _curves(trials, "momentum", SECTION_5_1, "train_loss"),
            _curves(trials, "momentum", SECTION_5_1, "train_loss", "updates"),
            _curves(trials, "adam", SECTION_5_1, "train_loss"),
            _curves(trials, "momentum", ("decaying_lr", *SECTION_5_2), "train_loss"),
            _curves(trials, "momentum", SECTION_5_1, "test_accuracy"),
            _curves(trials, "momentum", ("decaying_lr", *SECTION_5_2), "test_accuracy"),
        ],
        "Test accuracy against decaying_lr, in points: with momentum "
        f"{said['momentum']}; with Adam {said['adam']}.",
    )


def _source(optimizer: str, plan: str) -> tuple[str, str]:
    """The source's test accuracy of a plan, and how sure it is; "" if it gives none."""
    return (SOURCE[plan], "read") if optimizer == "momentum" and plan in SOURCE else ("", "")


def _curves(
    trials: Sequence[Trial], optimizer: str, plans: Sequence[str], y: str, x: str = "epoch"
) -> Facts:
    """A column of the rows during training, a line for each plan."""
    lines = []
    for plan in plans:
        samples: dict[float, list[float]] = {}
        for trial in trials:
            if trial.labels == {"optimizer": optimizer, "plan": plan} and trial.run:
                before = 0.0
                for row in trial.run.rows:
                    # The last row of a segment may have few updates, so that its loss is noisy.
                    is_short = row["epoch"] - before < SHORT_EPOCHS and y.startswith("train")
                    if y in row and not is_short:
                        samples.setdefault(row[x], []).append(row[y])
                    before = row["epoch"]
        lines.append(measured_line(plan, samples))
    words = f"{y.replace('_', ' ')}, {optimizer}"
    title = f"{words.capitalize()} by {x}"
    percent = y.endswith("accuracy")
    return chart(title, x, words, lines, percent=percent, is_linear=True)


STUDY = Study(
    claim="Increasing the batch size instead of decaying the learning rate reaches the same test "
    "accuracy after the same number of epochs, with fewer updates.",
    source="Smith et al. 2018, Sections 5.1 and 5.2; it shows curves for the first and gives the "
    "numbers below for the second",
    config=config,
    arms=arms(),
    seeds=1,
    judge=judge,
    note="All of CIFAR-10 at its full resolution with the paper's batches (128 to 16,000) and "
    "proportions, but a WRN-10-1 (theirs: WRN-16-4) and 50 epochs (theirs: 200), so every plan "
    "makes a quarter of the updates. The initial learning rate of each optimizer is the best by "
    "test accuracy of four, tried on decaying_lr alone with 4 epochs. Activations are bfloat16, "
    "and batches above 640 are made of micro-batches. In the recorded runs, plans that begin alike "
    "share that part, which was trained once but counts in the time of each. The runs of 4 epochs "
    "are those of an earlier record with 20 epochs (experiments/results/cifar10_tenth.json), and "
    "are not in the time. All had XLA_FLAGS='--xla_cpu_experimental_ynn_fusion_type= "
    "--xla_cpu_experimental_onednn_custom_call=true'.",
)
