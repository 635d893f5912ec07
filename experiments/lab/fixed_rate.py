"""Larger batches end lower at a fixed learning rate, and less so if the rate grows with them."""

from collections.abc import Sequence
from typing import Any

from experiments.lab.setups import small_mnist
from experiments.lab.study import (
    Arm,
    Number,
    Study,
    Trial,
    Verdict,
    chart,
    line,
    num_diverged,
    paired,
    values_of,
)

BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048)
CLOSE = 0.01  # of accuracy
RATE, SMALLEST, LARGEST, MIDDLE = 0.025, BATCHES[0], BATCHES[-1], 256


def config() -> Any:
    made = small_mnist()
    made.recipe.num_epochs = 10.0
    return made


def arms() -> list[Arm]:
    return [
        Arm(
            {"batch": batch, "rate": rate},
            {
                "recipe.batch_size": batch,
                "recipe.learning_rate": RATE * (batch / SMALLEST if rate == "scaled" else 1),
            },
        )
        for batch in BATCHES
        for rate in ("fixed", "scaled")
        if rate == "fixed" or batch > SMALLEST
    ]


def judge(trials: Sequence[Trial]) -> Verdict:
    trials = [*trials]
    # The smallest batch belongs to both lines.
    both = [t._replace(labels={**t.labels, "rate": "scaled"}) for t in trials]
    trials += [t for t in both if t.labels["batch"] == SMALLEST]
    charts = [
        chart(
            f"{part.capitalize()} accuracy by batch size",
            "batch",
            f"{part}_accuracy",
            [
                line(trials, f"{rate} rate", "batch", f"{part}_accuracy", rate=rate)
                for rate in ("fixed", "scaled")
            ],
        )
        for part in ("train", "test")
    ]

    def change(part: str, rate: str, batch: int) -> Number:
        ends = [
            values_of(trials, f"{part}_accuracy", rate=rate, batch=b) for b in (SMALLEST, batch)
        ]
        what = f"{part} accuracy at batch {batch} minus at {SMALLEST}, {rate} rate"
        return paired(what, *ends)

    numbers = [
        change(part, rate, batch)
        for batch in (MIDDLE, LARGEST)
        for rate in ("fixed", "scaled")
        for part in ("train", "test")
    ]

    def points(part: str, rate: str, batch: int) -> str:
        ours = change(part, rate, batch).ours
        return "an unknown number of" if ours is None else f"{100 * ours:+.1f}"

    kept = SMALLEST
    for batch in BATCHES[1:]:
        ours = change("test", "scaled", batch).ours
        diverged = num_diverged(trials, "test_accuracy", rate="scaled", batch=batch)
        if diverged or ours is None or ours < -CLOSE:
            break
        kept = batch
    return Verdict(
        numbers,
        charts,
        f"From batch {SMALLEST} to {LARGEST} at a fixed rate of {RATE:g}, training accuracy "
        f"changes by {points('train', 'fixed', LARGEST)} points and test accuracy by "
        f"{points('test', 'fixed', LARGEST)}. With the rate scaled with the batch, test accuracy "
        f"is within {100 * CLOSE:g} point up to batch {kept} (at {MIDDLE}: "
        f"{points('test', 'scaled', MIDDLE)}, fixed {points('test', 'fixed', MIDDLE)}); at "
        f"{LARGEST} the step is too large and the change is {points('test', 'scaled', LARGEST)}.",
    )


STUDY = Study(
    claim="Larger batches end at lower training and test accuracy if the learning rate is fixed, "
    "and a rate scaled with the batch removes most of this.",
    source="a lecture on batch size and momentum, curves only; Goyal et al. 2017 for the scaling",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="10,000 examples of MNIST, one hidden layer of 128 ReLUs, SGD without momentum, 10 "
    "epochs.",
)
