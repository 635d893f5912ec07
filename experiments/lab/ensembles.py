"""Averages of K growing runs against one decaying run, and averages of the last checkpoints."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from configs import cifar10
from experiments.lab import averages
from experiments.lab.setups import only_at_the_end
from experiments.lab.study import (
    Arm,
    Number,
    Study,
    Trial,
    Verdict,
    chart,
    in_points,
    measured_line,
    number,
    paired,
)

PLANS = ("decay", "hybrid", "grow")
NUM_EXAMPLES, NUM_TEST, LAST = 2_500, 2_000, 4
SIZES = (1, 2, 3)
LATE = {"probabilities": "mean probabilities", "weights": "mean weights"}


def config() -> Any:
    made = cifar10.get_config("decaying_lr,small")
    made.data.train_split = f"train[:{NUM_EXAMPLES}]"
    made.data.num_train_examples = NUM_EXAMPLES
    made.data.test_split = f"test[:{NUM_TEST}]"
    made.data.num_test_examples = NUM_TEST
    made.plan.max_batch_size = 400.0
    only_at_the_end(made)
    made.run.checkpoint_every_epochs = 0.5
    made.run.keep_checkpoints = LAST
    return made


def measure(folder: str) -> Mapping[str, Any]:
    """Returns the test probabilities of a run, and the accuracies of its last checkpoints."""
    experiment, several = averages.last(folder, LAST)
    labels = averages.labels_of(experiment)
    each = [averages.probabilities(experiment, variables) for variables in several]
    mean = averages.probabilities(experiment, averages.mean_weights(experiment, several))
    return {
        "test_probabilities": each[-1].round(4).tolist(),
        "test_labels": labels.tolist(),
        "newest": averages.score(each[-1], labels).accuracy,
        "probabilities": averages.score(np.mean(each, 0), labels).accuracy,
        "weights": averages.score(mean, labels).accuracy,
    }


def judge(trials: Sequence[Trial]) -> Verdict:
    by_plan = {
        plan: [t for t in trials if t.labels["plan"] == plan and t.measured] for plan in PLANS
    }
    # The mean over all sets of K runs. They share runs, so that they have no interval.
    accuracy = {
        (plan, k): mean
        for plan in PLANS
        for k in SIZES
        if (mean := _of_sets(by_plan[plan], k)) is not None
    }
    single = {plan: {t.seed: t.measured["newest"] for t in by_plan[plan]} for plan in PLANS}
    updates = {
        plan: max((t.run.rows[-1]["updates"] for t in by_plan[plan] if t.run), default=0)
        for plan in PLANS
    }
    late = {
        (plan, kind): paired(
            f"{words} of the last {LAST} checkpoints minus the newest, {plan}",
            single[plan],
            {t.seed: t.measured[kind] for t in by_plan[plan]},
        )
        for plan in PLANS
        for kind, words in LATE.items()
    }
    numbers = [
        *(number(f"test accuracy of one run, {p}", single[p].values()) for p in PLANS),
        *(paired(f"{p} minus decay, one run", single["decay"], single[p]) for p in PLANS[1:]),
        *(
            Number(f"test accuracy of the mean of {k} runs, {plan}", accuracy[plan, k], n=n)
            for plan in PLANS
            for k in SIZES[1:]
            for n in [len(by_plan[plan])]
            if (plan, k) in accuracy
        ),
        *(Number(f"updates of one run, {plan}", float(updates[plan])) for plan in PLANS),
        *late.values(),
    ]
    lines = [
        measured_line(
            plan, {k * updates[plan]: [accuracy[plan, k]] for k in SIZES if (plan, k) in accuracy}
        )
        for plan in PLANS
    ]
    return Verdict(
        numbers,
        [chart("Mean of 1, 2, 3 runs", "updates in all", "test_accuracy", lines)],
        f"{_finding(accuracy, updates)}The mean probabilities of the last {LAST} "
        f"checkpoints change a decaying run by {in_points(late['decay', 'probabilities'])} points, "
        f"their mean weights by {in_points(late['decay', 'weights'])}.",
    )


def _finding(accuracy: Mapping[tuple[str, int], float], updates: Mapping[str, int]) -> str:
    """What is said of means of several runs, as far as there are enough of them."""
    own = {p: 100 * (accuracy[p, 3] - accuracy[p, 1]) for p in PLANS if (p, 3) in accuracy}
    share = {k: k * updates["grow"] / max(1, updates["decay"]) for k in SIZES}
    gain = {
        k: 100 * (accuracy["grow", k] - accuracy["decay", 1])
        for k in SIZES[1:]
        if {("grow", k), ("decay", 1)} <= accuracy.keys()
    }
    said = ""
    if own:
        said += (
            "The mean of three runs is better than one by "
            f"{', '.join(f'{points:+.2f}' for points in own.values())} points with the plans "
            f"{', '.join(own)}. "
        )
    if 2 in gain:
        three = f"; three take {share[3]:.2f} times, {gain[3]:+.2f} points" if 3 in gain else ""
        said += (
            f"Two growing runs take {share[2]:.2f} times the updates of one decaying run, and the "
            f"accuracy of their mean differs from its by {gain[2]:+.2f} points{three}. "
        )
    return said


def _of_sets(trials: Sequence[Trial], size: int) -> float | None:
    """The mean accuracy of the averages of all sets of so many runs; None for fewer runs."""
    each = {t.seed: np.asarray(t.measured["test_probabilities"]) for t in trials}
    labels = np.asarray(trials[0].measured["test_labels"]) if trials else np.zeros(0)
    found = [
        averages.score(np.mean([each[seed] for seed in some], 0), labels).accuracy
        for some in combinations(each, size)
    ]
    return float(np.mean(found)) if found else None


STUDY = Study(
    claim="The mean of several runs is about 2 % better than one, and growing runs give it at the "
    "updates of one decaying run.",
    source='a lecture on convolutional networks ("about 2 % extra" for an ensemble)',
    config=config,
    arms=[Arm({"plan": plan}, {"plan.name": plan}) for plan in PLANS],
    seeds=6,
    judge=judge,
    measure=measure,
    note=f"A WRN-10-1 at half the resolution, {NUM_EXAMPLES:,} images of CIFAR-10, 10 epochs, "
    f"{NUM_TEST:,} test images. Equal updates are not equal work: K runs see K times the examples. "
    "Means over all sets of K of the 6 runs, which share runs, have no interval. Running "
    "statistics are renewed for mean weights.",
)
