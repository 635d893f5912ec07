"""Runs grouped by plan, and the statistics over their seeds. No jax."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import special

from batchgrow.report.folders import Metric, Run
from batchgrow.run.folder import flatten

# Top-level fields of a config that may differ between two samples of one plan: `run` says how a
# run is executed and does not change its trajectory.
IGNORED_FIELDS = ("seed", "run")


@dataclasses.dataclass(frozen=True)
class PlanGroup:
    """Runs of one plan: their configs are equal except for the seed.

    Statistics use the finished runs, one for each seed: the same seed twice is the same run.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def variant(self) -> str:
        return self.runs[0].variant

    @property
    def optimizer(self) -> str:
        return self.runs[0].optimizer

    @property
    def plan(self) -> dict[str, Any]:
        return self.runs[0].plan

    @property
    def num_updates(self) -> int:
        """The median over finished runs: a plan that follows the noise differs between seeds."""
        counts = [run.num_updates for run in self.finished]
        return statistics.median_low(counts) if counts else self.plan["num_updates"]

    @property
    def metric(self) -> Metric:
        """The task's first metric, by which plans are compared."""
        return self.runs[0].metric

    @property
    def finished(self) -> tuple[Run, ...]:
        by_seed = {run.seed: run for run in reversed(self.runs) if run.finished}
        return tuple(run for run in self.runs if by_seed.get(run.seed) is run)

    def finals(self, column: str) -> dict[int, float]:
        """seed -> the finite last value of a column, of the finished runs."""
        finals = {run.seed: run.final(column) for run in self.finished}
        return {seed: value for seed, value in finals.items() if value is not None}

    @property
    def tests(self) -> dict[int, float]:
        """seed -> the test metric at the end of the finished run."""
        return self.finals(f"test_{self.metric.name}")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one number over n seeds; stdev is the sample standard deviation, None for n = 1."""

    n: int
    median: float
    mean: float
    stdev: float | None


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean over common seeds of second - first; low and high bound its 95% t-interval."""

    n: int
    mean: float
    low: float | None
    high: float | None


def group_by_plan(runs: Sequence[Run]) -> list[PlanGroup]:
    """One group for each config (except for the seed), most planned updates first.

    The label is the variant, with the fields that tell equal variants apart added to it.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(_identity(run.config), sort_keys=True), []).append(run)
    groups = [
        PlanGroup(
            _label(runs_of_plan[0], [other[0] for other in members.values()]),
            tuple(sorted(runs_of_plan, key=lambda run: (run.seed, run.path))),
        )
        for runs_of_plan in members.values()
    ]
    return sorted(groups, key=lambda group: (-group.num_updates, group.label))


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that the trajectory depends on, except for the seed, by dotted name."""
    return flatten({key: value for key, value in config.items() if key not in IGNORED_FIELDS})


def _label(run: Run, others: Sequence[Run]) -> str:
    namesakes = [other for other in others if other.variant == run.variant]
    words = [run.variant]
    # Experiments and optimizers differ in many fields; their names are enough.
    for key in ("experiment", "optimizer"):
        name = getattr(run, key)
        if any(getattr(other, key) != name for other in namesakes):
            words.append(name)
            namesakes = [other for other in namesakes if getattr(other, key) == name]
    own, rest = _identity(run.config), [_identity(other.config) for other in namesakes]
    different = [key for key in own if any(other.get(key) != own[key] for other in rest)]
    words += [f"{key}={own[key]}" for key in different]
    return " ".join(filter(None, words)) or run.experiment


def summarize(values: Sequence[float]) -> Statistics | None:
    """None for no values."""
    if not values:
        return None
    return Statistics(
        n=len(values),
        median=statistics.median(values),
        mean=statistics.fmean(values),
        stdev=statistics.stdev(values) if len(values) > 1 else None,
    )


def paired_difference(first: PlanGroup, second: PlanGroup) -> PairedDifference | None:
    """Of the test metric over the seeds that both groups finished; None if there are none."""
    ours, theirs = first.tests, second.tests
    differences = [theirs[seed] - ours[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return PairedDifference(n, mean, None, None)
    half = special.stdtrit(n - 1, 0.975) * statistics.stdev(differences) / math.sqrt(n)
    return PairedDifference(n, mean, mean - half, mean + half)


def paired_differences(
    groups: Sequence[PlanGroup],
) -> list[tuple[PlanGroup, PlanGroup, PairedDifference]]:
    """Every pair of plans that share finished seeds."""
    pairs = itertools.combinations(groups, 2)
    found = ((first, second, paired_difference(first, second)) for first, second in pairs)
    return [(first, second, paired) for first, second, paired in found if paired is not None]
