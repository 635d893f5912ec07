"""Run folders read back, grouped by plan, and the statistics over their seeds. No jax here."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from scipy import special

# Fields of a config that do not change the trajectory (`run` holds those of the execution); two
# runs may differ in them and in the seed and still be two samples of one plan.
IGNORED_FIELDS = ("seed", "run")
TIMERS = ("compile", "input", "step", "eval", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder: config.json, plan.json, metrics.jsonl and, once finished, summary.json."""

    path: str
    config: dict[str, Any]
    plan: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.config["name"]

    @property
    def variant(self) -> str:
        return self.config["variant"]

    @property
    def optimizer(self) -> str:
        return self.config["optimizer"]["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def epoch(self) -> float:
        """Epochs trained so far, as logged."""
        return self.rows[-1]["epoch"] if self.rows else 0.0

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        if self.summary is not None:
            return self.summary["num_updates"]
        return self.rows[-1]["updates"] if self.rows else 0

    @property
    def test_accuracy(self) -> float | None:
        """Fraction at the end of the run, or at the last evaluation of an unfinished one."""
        if self.summary is not None:
            return self.summary["final"]["test_accuracy"]
        evaluated = [row["test_accuracy"] for row in self.rows if "test_accuracy" in row]
        return evaluated[-1] if evaluated else None


@dataclasses.dataclass(frozen=True)
class PlanGroup:
    """Runs of one plan: their configs are equal but for the seed.

    Statistics use finished runs, one for each seed: the same seed twice is the same run.
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
    def finished(self) -> tuple[Run, ...]:
        by_seed = {run.seed: run for run in reversed(self.runs) if run.finished}
        return tuple(run for run in self.runs if by_seed.get(run.seed) is run)


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


def find_runs(paths: Iterable[str]) -> list[str]:
    """Run folders among and below `paths`, in order, each once.

    Raises ValueError where a path does not exist or holds no run folder.
    """
    found: dict[str, None] = {}
    for given in paths:
        path = epath.Path(given)
        if not path.is_dir():
            raise ValueError(f"{given}: no such folder; give run folders or a folder of them")
        below = _run_folders(path)
        if not below:
            raise ValueError(
                f"{given}: no run folder here (no config.json); give the workdir of a training run"
            )
        found |= dict.fromkeys(str(folder) for folder in below)
    return list(found)


def _run_folders(path: epath.Path) -> list[epath.Path]:
    """`path` itself, or else those below it; what lies inside a run folder is not searched."""
    if (path / "config.json").exists():
        return [path]
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    return [found for folder in folders for found in _run_folders(folder)]


def read_run(path: str) -> Run:
    """The run in folder `path`. Raises ValueError naming the file that is missing or broken."""
    folder = epath.Path(path)
    config, plan = (_read_json(folder / name) for name in ("config.json", "plan.json"))
    summary = folder / "summary.json"
    run = Run(
        path=str(path),
        config=config,
        plan=plan,
        rows=_read_rows(folder / "metrics.jsonl"),
        summary=_read_json(summary) if summary.exists() else None,
    )
    for field in ("name", "variant", "optimizer", "seed"):
        if field not in config:
            raise ValueError(f"{folder / 'config.json'}: field {field!r} is missing; not a run's?")
    return run


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error


def _read_rows(path: epath.Path) -> tuple[dict[str, Any], ...]:
    """A cut last line is what a killed run leaves: dropped. No file: the run has not logged yet.

    NaN and infinity become None.
    """
    if not path.exists():
        return ()
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line, parse_constant=lambda _: None)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        rows.append(row)
    return tuple(rows)


def group_by_plan(runs: Sequence[Run]) -> list[PlanGroup]:
    """One group for each config (the seed aside), most planned updates first.

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
    return sorted(groups, key=lambda group: (-group.plan["num_updates"], group.label))


def _identity(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer.name": ...}: the config flattened, without the fields that change nothing."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in IGNORED_FIELDS:
            continue
        if isinstance(value, dict):
            flat |= _identity(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _label(run: Run, others: Sequence[Run]) -> str:
    namesakes = [other for other in others if other.variant == run.variant]
    words = [run.variant]
    if any(other.optimizer != run.optimizer for other in namesakes):
        # An optimizer comes with a learning rate of its own: its name alone says which recipe.
        words.append(run.optimizer)
        namesakes = [other for other in namesakes if other.optimizer == run.optimizer]
    own, rest = _identity(run.config), [_identity(other.config) for other in namesakes]
    different = [key for key in own if any(other.get(key) != own[key] for other in rest)]
    return " ".join(words + [f"{key}={own[key]}" for key in different])


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
    """Of test accuracy over the seeds that both groups finished; None if there are none."""
    accuracies = [
        {run.seed: run.summary["final"]["test_accuracy"] for run in group.finished if run.summary}
        for group in (first, second)
    ]
    common = sorted(accuracies[0].keys() & accuracies[1].keys())
    if not common:
        return None
    differences = [accuracies[1][seed] - accuracies[0][seed] for seed in common]
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
