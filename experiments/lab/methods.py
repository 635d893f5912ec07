"""Regularised networks by three plans: the rate decays, the batch grows once, the batch grows."""

import dataclasses
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from configs import cifar10
from experiments.lab.setups import only_at_the_end
from experiments.lab.solutions import first_examples, opened
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
    measured_line,
    number,
    paired,
    values_of,
)

NUM_EXAMPLES, NUM_TESTED, NUM_EPOCHS = 10_000, 5_000, 4.0
TRACED = {"trace.per_decade": 4, "run.keep_traced": True}  # to see the scale s over time
METHODS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "dropout": {"model.dropout": 0.3},
    "ShakeDrop": {"model.branches": "shake_drop", "model.branch_norm": True},
    "Hadamard": {"model.last_layer": "hadamard"} | TRACED,
    "cutout": {"task.cutout": 16},
}
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
    """Of plain runs the test accuracy by views, of fixed classifiers the scale s over time."""
    method = os.path.basename(os.path.dirname(folder)).partition(",")[0]
    if method == "method=Hadamard":
        with opened(folder) as (_, positions, read):
            scales = [read(at).params["classifier"]["logit_scale"] for at in positions]
        return {"scales": [[at, float(s)] for at, s in zip(positions, scales, strict=True)]}
    if method != "method=plain":
        return {}
    with opened(folder) as (experiment, positions, read):
        state, examples = read(positions[-1]), first_examples(experiment.test_data, NUM_TESTED)
    found = {}
    for views in VIEWS:
        task = dataclasses.replace(experiment.task, test_views=views)  # pyright: ignore

        @jax.jit
        def correct(examples: Any, task: Any = task) -> jax.Array:
            return task.loss(state.evaluated, examples, None, train=False).metrics["correct"]

        parts = np.split(np.arange(NUM_TESTED), NUM_TESTED // 1000)
        found[views] = float(
            np.mean(
                [correct(jax.tree.map(lambda x, part=part: x[part], examples)) for part in parts]
            )
        )
    return {"views": found}


def judge(trials: Sequence[Trial]) -> Verdict:
    accuracy = {
        (arm.labels["method"], arm.labels["plan"]): values_of(trials, "test_accuracy", **arm.labels)
        for arm in arms()
    }
    of_plan = {
        (method, plan): paired(
            f"{plan} minus decay, {method}", accuracy[method, "decay"], accuracy[method, plan]
        )
        for method in METHODS
        for plan in PLANS[1:]
    }
    of_method = [
        paired(
            f"{method} minus plain, decay", accuracy["plain", "decay"], accuracy[method, "decay"]
        )
        for method in METHODS
        if method != "plain"
    ]
    of_views = []
    for views in VIEWS[1:]:  # The plans of a seed begin alike, so they count once.
        gains: dict[int, list[float]] = {}
        for trial in trials:
            if "views" in trial.measured:
                found = trial.measured["views"]
                gains.setdefault(trial.seed, []).append(found[views] - found["one"])
        means = [statistics.mean(of_seed) for of_seed in gains.values()]
        of_views.append(number(f"{views} minus one view, plain, mean of the plans", means))
    numbers = [number(f"test accuracy, {m}, {p}", v.values()) for (m, p), v in accuracy.items()]

    def panel(part: str) -> Facts:
        y = f"{part}_accuracy"
        lines = [line(trials, plan, "method", y, plan=plan) for plan in PLANS]
        return chart(f"{part.capitalize()} accuracy by method", "method", y, lines)

    charts = [panel("train"), panel("test")]
    scales = {
        plan: _over_time([t.measured["scales"] for t in trials if _has_scales(t, plan)])
        for plan in PLANS
    }
    if any(scales.values()):
        lines = [measured_line(plan, samples) for plan, samples in scales.items()]
        charts.append(chart("Scale of the fixed classifier", "epochs", "log s", lines))
    said = [f"{method} {in_points(of_plan[method, 'grow'])}" for method in METHODS]
    apart = [method for method in METHODS if _excludes_zero(of_plan[method, "grow"])]
    single = any(of_plan[method, "grow"].low is None for method in METHODS)
    sure = "One seed has no interval"
    if not single:
        sure = f"The interval excludes 0 for {', '.join(apart) if apart else 'none'}"
    return Verdict(
        [*numbers, *of_plan.values(), *of_method, *of_views],
        charts,
        "Growing instead of decaying changes test accuracy by, in points: "
        f"{', '.join(said)}. {sure}.",
    )


def _excludes_zero(found: Number) -> bool:
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def _has_scales(trial: Trial, plan: str) -> bool:
    return "scales" in trial.measured and trial.labels["plan"] == plan


def _over_time(courses: Sequence[Sequence[tuple[int, float]]]) -> dict[float, list[float]]:
    """Epochs -> log s of each run."""
    found: dict[float, list[float]] = {}
    for course in courses:
        for at, scale in course:
            found.setdefault(at / NUM_EXAMPLES, []).append(math.log(scale))
    return found


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
    "underfits, so it cannot show what a method is worth; it compares plans.",
)
