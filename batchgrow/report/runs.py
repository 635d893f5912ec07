"""Runs grouped by plan, and the statistics over their seeds. No jax."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import special

from batchgrow.names import flatten
from batchgrow.plan.growth import nearest
from batchgrow.report.folders import Metric, Run

# Top-level fields of a config that may differ between two samples of one plan: `run` says how a
# run is executed and does not change its trajectory.
IGNORED_FIELDS = ("seed", "run")
MANY_PLANS = 7  # of more, not every pair is compared


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
        """The plan of a finished run if there is one, because a plan may decide during the run."""
        return (self.finished or self.runs)[0].plan

    @property
    def num_updates(self) -> int:
        """The median over finished runs; a plan that follows the noise differs between seeds."""
        counts = [run.num_updates for run in self.finished]
        return statistics.median_low(counts) if counts else self.plan["num_updates"]

    @property
    def metric(self) -> Metric:
        """The task's first metric, by which plans are compared."""
        return self.runs[0].metric

    @property
    def _by_seed(self) -> dict[int, Run]:
        return {run.seed: run for run in reversed(self.runs) if run.finished}

    @property
    def finished(self) -> tuple[Run, ...]:
        chosen = self._by_seed
        return tuple(run for run in self.runs if chosen.get(run.seed) is run)

    @property
    def repeated(self) -> list[tuple[Run, Run]]:
        """Each finished run that is left out, with the one of the same seed that is used."""
        chosen = self._by_seed
        return [
            (run, chosen[run.seed])
            for run in self.runs
            if run.finished and chosen[run.seed] is not run
        ]

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
    """Mean over common seeds of second - first; low and high bound its 95 % t-interval."""

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
        members.setdefault(json.dumps(identity(run.config), sort_keys=True), []).append(run)
    groups = [
        PlanGroup(
            label_of(runs_of_plan[0], [other[0] for other in members.values()]),
            tuple(sorted(runs_of_plan, key=lambda run: (run.seed, run.path))),
        )
        for runs_of_plan in members.values()
    ]
    return sorted(groups, key=lambda group: (-group.num_updates, group.label))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that the trajectory depends on, except for the seed, by dotted name."""
    return flatten({key: value for key, value in config.items() if key not in IGNORED_FIELDS})


def label_of(run: Run, others: Sequence[Run], besides: str = "") -> str:
    """Returns the variant of a run, with what tells it from other runs of that variant.

    Examples are "hybrid" and "hybrid (adam, batch_size=32)".

    Args:
      run: the run.
      others: the runs to tell it from.
      besides: a field that is left out.
    """
    namesakes = [other for other in others if other.variant == run.variant]
    words = []
    # Experiments and optimizers differ in many fields; their names are enough.
    for key in ("experiment", "optimizer"):
        name = getattr(run, key)
        if any(getattr(other, key) != name for other in namesakes):
            words.append(name)
            namesakes = [other for other in namesakes if getattr(other, key) == name]
    own, rest = identity(run.config), [identity(other.config) for other in namesakes]
    different = [key for key in own if any(other.get(key) != own[key] for other in rest)]
    different = [key for key in different if key != besides]
    short = {key: key.rpartition(".")[2] for key in different}
    named = [*short.values()]
    unclear = {*IGNORED_FIELDS, *(name for name in named if named.count(name) > 1)}
    words += [
        f"{key if short[key] in unclear else short[key]}={own[key]}{_rounding(run, key)}"
        for key in different
    ]
    told_by = ", ".join(words)
    if not run.variant:
        return told_by or run.experiment
    return f"{run.variant} ({told_by})" if words else run.variant


def _rounding(run: Run, key: str) -> str:
    """What a label adds to a batch size that the run has rounded; "" for other fields."""
    own, segments = identity(run.config), run.plan["segments"]
    if key != "recipe.batch_size" or not segments:
        return ""
    first = segments[0]["batch_size"]
    multiple = own.get("plan.batch_multiple") or own.get("ghost_batch_size") or 1
    if not all(isinstance(number, int) and number > 0 for number in (own[key], multiple)):
        return ""
    is_rounded = own[key] != first == nearest(own[key], multiple)
    return f" rounded to {first}" if is_rounded else ""


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
    return PairedDifference(len(differences), *interval(differences))


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Returns the mean and the ends of its 95 % t-interval, None for one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return mean, None, None
    half = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def paired_differences(
    groups: Sequence[PlanGroup],
) -> list[tuple[PlanGroup, PlanGroup, PairedDifference]]:
    """Every pair of plans that share finished seeds; of many plans, the pairs with the best one.

    The best of more than `MANY_PLANS` plans is the one with the best mean of the test metric.
    """
    pairs = list(itertools.combinations(groups, 2))
    tested = [group for group in groups if group.tests]
    if len(groups) > MANY_PLANS and tested:
        sign = 1 if tested[0].metric.better == "higher" else -1
        best = max(tested, key=lambda group: sign * statistics.fmean(group.tests.values()))
        pairs = [(best, group) for group in groups if group is not best]
    found = ((first, second, paired_difference(first, second)) for first, second in pairs)
    return [(first, second, paired) for first, second, paired in found if paired is not None]
