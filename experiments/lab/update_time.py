"""Seconds of an update and of an epoch against the batch size."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from configs import mnist
from experiments.lab.setups import updates_of
from experiments.lab.study import (
    Arm,
    Number,
    Study,
    Trial,
    Verdict,
    chart,
    measured_line,
    number,
)

# batch -> updates of a run: enough to time, few enough to wait for
UPDATES = {1: 3000, 10: 2000, 100: 1000, 1000: 200, 10_000: 40, 60_000: 10}
PARTS = 5  # rows of a run; the first is left out


def config() -> Any:
    made = mnist.get_config("mlp")
    made.recipe.learning_rate = 0.01
    made.evaluate_every_epochs = made.run.checkpoint_every_epochs = 1e6
    return made


def arms() -> list[Arm]:
    made = []
    for batch, updates in UPDATES.items():
        epochs = updates_of(config(), updates, batch)
        changes = {
            "recipe.batch_size": batch,
            "recipe.num_epochs": epochs,
            "log_every_epochs": epochs / PARTS,
        }
        made.append(Arm({"batch": batch}, changes))
    return made


def judge(trials: Sequence[Trial]) -> Verdict:
    seconds = {
        batch: [_seconds(t) for t in trials if t.labels["batch"] == batch and t.run]
        for batch in UPDATES
    }
    num_examples = config().data.num_train_examples
    epochs = {b: [v * num_examples / b for v in values] for b, values in seconds.items()}
    charts = [
        chart(
            f"Time of an {what} by batch size",
            "batch",
            f"{unit} of an {what}",
            [measured_line(what, samples)],
        )
        for what, unit, samples in (
            ("update", "ms", {b: [1000 * v for v in values] for b, values in seconds.items()}),
            ("epoch", "seconds", epochs),
        )
    ]
    numbers: list[Number] = []
    for batch in UPDATES:
        numbers.append(number(f"ms of an update of {batch:,}", [1000 * v for v in seconds[batch]]))
    numbers += [number(f"seconds of an epoch at {b:,}", epochs[b]) for b in UPDATES]
    numbers.append(
        Number(
            "updates of an epoch, batch 1 over batch 1,000",
            num_examples / (num_examples / 1000),
            source="60,000 against 60",
            sure="read",
        )
    )
    ratio = median(seconds[1000]) / median(seconds[1])
    whole = median(epochs[1]) / median(epochs[1000])
    return Verdict(
        numbers,
        charts,
        f"An update of 1,000 examples takes {ratio:.0f} times as long as an update of one, and an "
        f"epoch at batch 1,000 is {whole:.0f} times shorter than at batch 1.",
    )


def _seconds(trial: Trial) -> float:
    """Median seconds of an update, from the rows after the first."""
    assert trial.run
    rows = trial.run.rows[1:]
    return median([row["batch_size"] / row["examples_per_second"] for row in rows])


STUDY = Study(
    claim="The time of an update is flat up to about 1,000 examples, so that the time of an epoch "
    "falls as the batch grows.",
    source="a lecture on batch size; it describes a GPU",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="MNIST, one hidden layer of 800 ReLUs. Time only counts on a machine that does nothing "
    "else.",
)
