"""Five classes of CIFAR-10 after the five others: from scratch, from a trained run, and frozen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchgrow.data.catalog import load_images
from configs import cifar10
from experiments.lab.setups import only_at_the_end
from experiments.lab.study import (
    Arm,
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

NUM_BEFORE, NUM_AFTER, NUM_TEST = 5_000, 1_000, 2_000
EPOCHS_BEFORE, EPOCHS_AFTER = 6.0, 8.0
PLANS = ("decay", "hybrid", "grow")
STARTS = {
    "scratch": {},
    "transfer": {"init.layers": "*,!classifier"},
    "frozen": {"init.layers": "*,!classifier", "init.frozen": "*,!classifier"},
}
BEFORE = {"start": "before", "plan": "decay"}


def first_classes(split: str) -> Mapping[str, np.ndarray]:
    """Classes 0 to 4: the first examples of them in "NAME:COUNT" of CIFAR-10."""
    return _classes(split, 0)


def last_classes(split: str) -> Mapping[str, np.ndarray]:
    """Classes 5 to 9, as labels 0 to 4."""
    return _classes(split, 5)


def _classes(split: str, first: int) -> Mapping[str, np.ndarray]:
    name, _, count = split.partition(":")
    arrays = load_images("cifar10", name).arrays
    label = arrays["label"] - first
    chosen = np.flatnonzero((label >= 0) & (label < 5))[: int(count)]
    return {"image": arrays["image"][chosen], "label": label[chosen]}


def config() -> Any:
    made = cifar10.get_config("decaying_lr,small")
    made.model.num_classes = 5
    made.data.num_test_examples = NUM_TEST
    made.data.test_split = f"test:{NUM_TEST}"
    made.plan.max_batch_size = 512.0
    only_at_the_end(made)
    return made


def _of(half: str, num_examples: int, num_epochs: float) -> dict[str, Any]:
    return {
        "data.name": f"experiments.lab.transfer:{half}_classes",
        "data.train_split": f"train:{num_examples}",
        "data.num_train_examples": num_examples,
        "recipe.num_epochs": num_epochs,
        "recipe.boundaries_epochs": tuple(part * num_epochs for part in (0.3, 0.6, 0.8)),
    }


def arms() -> list[Arm]:
    after = _of("last", NUM_AFTER, EPOCHS_AFTER)
    return [
        Arm(BEFORE, _of("first", NUM_BEFORE, EPOCHS_BEFORE)),
        *(
            Arm(
                {"start": start, "plan": plan},
                after | changes | {"plan.name": plan},
                start_from=BEFORE if changes else None,
            )
            for start, changes in STARTS.items()
            for plan in PLANS
        ),
    ]


def judge(trials: Sequence[Trial]) -> Verdict:
    accuracy = {
        (start, plan): values_of(trials, "test_accuracy", start=start, plan=plan)
        for start in ("before", *STARTS)
        for plan in PLANS
    }
    numbers = [
        number("test accuracy on the first classes", accuracy["before", "decay"].values()),
        *(
            number(f"test accuracy, {start}, {plan}", accuracy[start, plan].values())
            for start in STARTS
            for plan in PLANS
        ),
    ]
    gains = {
        (start, plan): paired(
            f"{start} minus scratch, {plan}", accuracy["scratch", plan], accuracy[start, plan]
        )
        for start in ("transfer", "frozen")
        for plan in PLANS
    }
    grown = {
        start: paired(
            f"grow minus decay, {start}", accuracy[start, "decay"], accuracy[start, "grow"]
        )
        for start in STARTS
    }
    panels = [
        chart(
            f"{part.capitalize()} accuracy by plan",
            "plan",
            f"{part}_accuracy",
            [line(trials, start, "plan", f"{part}_accuracy", start=start) for start in STARTS],
        )
        for part in ("train", "test")
    ]
    return Verdict(
        [*numbers, *gains.values(), *grown.values()],
        panels,
        "The trained start changes the test accuracy by "
        f"{', '.join(in_points(gains['transfer', plan]) for plan in PLANS)} points with the plans "
        f"{', '.join(PLANS)}; with all layers but the classifier frozen, by "
        f"{', '.join(in_points(gains['frozen', plan]) for plan in PLANS)}. A growing batch instead "
        f"of a falling rate changes it by {in_points(grown['scratch'])} from scratch and by "
        f"{in_points(grown['transfer'])} after the transfer.",
    )


STUDY = Study(
    claim="A network that starts from what another task taught it learns more from the same "
    "examples, and a growing batch keeps that gain.",
    source="a lecture on transfer learning; no number is given",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note=f"A WRN-10-1 at half the resolution: {NUM_BEFORE:,} images of classes 0 to 4 for "
    f"{EPOCHS_BEFORE:g} epochs, then {NUM_AFTER:,} images of classes 5 to 9 for {EPOCHS_AFTER:g} "
    "epochs with a new classifier. No rate was tuned. The growing plan ends with 6 updates of 512 "
    "images, far beyond a tenth of the training set.",
)
