"""Regularised networks by three plans: the rate decays, the batch grows once, the batch grows."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from batchgrow.run.checkpoints import positions_of
from batchgrow.run.variables import read_variables
from configs import cifar10
from experiments.lab import averages
from experiments.lab.setups import only_at_the_end
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
    line_of,
    measured_line,
    number,
    paired,
    reference,
    values_of,
)

NUM_EXAMPLES, NUM_TESTED, NUM_EPOCHS = 10_000, 5_000, 4.0
TRACED = {"trace.per_decade": 4, "run.keep_traced": True}  # to see the scale s over time
METHODS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "dropout": {"model.dropout": 0.3},
    "stochastic depth": {"model.branches": "stochastic_depth"},
    "Shake": {"model.branches": "shake", "model.branch_norm": True},
    "ShakeDrop": {"model.branches": "shake_drop", "model.branch_norm": True},
    "Hadamard": {"model.last_layer": "hadamard"} | TRACED,
    "orthonormal": {"model.last_layer": "orthonormal"},
    "colour jitter": {"task.brightness": 0.4, "task.contrast": 0.4, "task.saturation": 0.4},
    "random erasing": {"task.random_erasing": 0.5},
    "cutout": {"task.cutout": 16},
}
FIXED = ("Hadamard", "orthonormal")  # the last layer
PLANS = ("decay", "hybrid", "grow")
VIEWS = ("one", "flip", "crops_flips")


def config() -> Any:
    """Batches of 32, and up to 800 where they grow; the rate falls by 5 twice."""
    made = cifar10.get_config("decaying_lr,small")
    made.data.train_split = f"train[:{NUM_EXAMPLES}]"
    made.data.test_split = f"test[:{NUM_TESTED}]"
    made.data.num_train_examples = NUM_EXAMPLES
    made.data.num_test_examples = NUM_TESTED
    made.recipe.num_epochs = NUM_EPOCHS
    made.recipe.boundaries_epochs = (0.5 * NUM_EPOCHS, 0.75 * NUM_EPOCHS)
    made.model.stem_strides = 4
    made.run.num_devices = 1
    only_at_the_end(made)
    return made


def arms() -> list[Arm]:
    return [
        Arm({"method": method, "plan": plan}, {**changes, "plan.name": plan})
        for method, changes in METHODS.items()
        for plan in PLANS
    ]


def measure(folder: str) -> dict[str, Any]:
    """Of plain runs the test accuracy by views, of Hadamard classifiers the scale s over time."""
    method = os.path.basename(os.path.dirname(folder)).partition(",")[0]
    if method == "method=Hadamard":
        found = {at: read_variables(f"{folder}/checkpoints/{at}") for at in positions_of(folder)}
        scales = {at: variables["params"]["classifier"] for at, variables in found.items()}
        return {"scales": [[at, float(layer["logit_scale"])] for at, layer in scales.items()]}
    if method != "method=plain":
        return {}
    experiment, [variables] = averages.last(folder, 1)
    labels, found = averages.labels_of(experiment), {}
    for views in VIEWS:
        viewed = averages.probabilities(averages.with_views(experiment, views), variables)
        found[views] = averages.score(viewed, labels).accuracy
    return {"views": found}


def judge(trials: Sequence[Trial]) -> Verdict:
    def of(method: str, plan: str, part: str = "test") -> dict[int, float]:
        return values_of(trials, f"{part}_accuracy", method=method, plan=plan)

    def minus_plain(method: str, part: str = "test") -> Number:
        words = f"{method} minus plain, decay, {part} accuracy"
        return paired(words, of("plain", "decay", part), of(method, "decay", part))

    by_plan = {
        (plan, method): paired(
            f"{plan} minus decay, {method}", of(method, "decay"), of(method, plan)
        )
        for method in METHODS
        for plan in PLANS[1:]
    }
    by_method = [minus_plain(method) for method in METHODS if method != "plain"]
    by_method += [minus_plain(method, "train") for method in FIXED]
    # The plans of a seed begin alike, so they count once.
    viewed = [
        [t.measured["views"] for t in trials if t.seed == seed and "views" in t.measured]
        for seed in sorted({trial.seed for trial in trials})
    ]
    by_views = [
        number(
            f"{views} minus one view, plain, mean of the plans",
            [statistics.mean(run[views] - run["one"] for run in some) for some in viewed if some],
        )
        for views in VIEWS[1:]
    ]
    accuracies = [
        number(f"test accuracy, {method}, {plan}", of(method, plan).values())
        for method in METHODS
        for plan in PLANS
    ]
    pooled = {}
    for plan in PLANS[1:]:
        pairs = [(of(method, "decay"), of(method, plan)) for method in METHODS]
        seeds = sorted(set.intersection(*(first.keys() & second.keys() for first, second in pairs)))
        means = [statistics.mean(b[seed] - a[seed] for a, b in pairs) for seed in seeds]
        pooled[plan] = number(f"{plan} minus decay, mean of the methods", means)
    said = [f"{method} {in_points(by_plan['grow', method])}" for method in METHODS]
    signs = {
        words: n.low * n.high
        for words, n in by_plan.items()
        if n.low is not None and n.high is not None
    }
    apart = [f"{plan} with {method}" for (plan, method), sign in signs.items() if sign > 0]
    named = f" ({', '.join(apart)})" if apart else ""
    return Verdict(
        [*accuracies, *by_plan.values(), *pooled.values(), *by_method, *by_views],
        [*_charts_of_accuracy(trials, by_plan), *_chart_of_scales(trials)],
        "On the mean of the methods, growing instead of decaying changes test accuracy by "
        f"{in_points(pooled['grow'])} points, and the hybrid by {in_points(pooled['hybrid'])}. "
        f"Growing, by method: {', '.join(said)}. Of {len(signs)} intervals of a method and a plan, "
        f"{len(apart)} exclude zero{named}; by chance one in twenty would.",
    )


def _charts_of_accuracy(
    trials: Sequence[Trial], by_plan: Mapping[tuple[str, str], Number]
) -> list[Facts]:
    differences = [
        line_of(f"{plan} minus decay", {method: by_plan[plan, method] for method in METHODS})
        for plan in PLANS[1:]
    ]
    zero = reference("no difference", [(method, 0.0) for method in METHODS])
    y = "difference of test accuracy"
    return [
        chart("Difference from decay", "method", y, [*differences, zero], percent=True),
        *(
            chart(
                f"{part.capitalize()} accuracy by method",
                "method",
                f"{part}_accuracy",
                [line(trials, plan, "method", f"{part}_accuracy", plan=plan) for plan in PLANS],
            )
            for part in ("test", "train")
        ),
    ]


def _chart_of_scales(trials: Sequence[Trial]) -> list[Facts]:
    """log s by epochs, or nothing if no run has it."""
    found: dict[str, dict[float, list[float]]] = {plan: {} for plan in PLANS}
    for trial in trials:
        for at, scale in trial.measured.get("scales", ()):
            of_plan = found[trial.labels["plan"]]
            of_plan.setdefault(at / NUM_EXAMPLES, []).append(math.log(scale))
    lines = [measured_line(plan, samples) for plan, samples in found.items() if samples]
    return [chart("Scale of the Hadamard classifier", "epochs", "log s", lines)] if lines else []


STUDY = Study(
    claim="A growing batch matches a decaying rate when the network is regularised otherwise, too.",
    source="Smith et al. 2018 for the plans; docs/methods.md has the source of each method",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    measure=measure,
    note="10,000 examples of CIFAR-10 and 5,000 to test on, WRN-10-1 at a quarter of the "
    "resolution with ghosts of 32, 4 epochs, batches from 32 to 800. So short a training "
    "underfits, so it cannot show what a method is worth; it compares plans. The branches of "
    "Shake and ShakeDrop end in a batch norm, as in their papers, and those of the others do "
    "not. The mean over the methods was added after a look at the first seed.",
)
