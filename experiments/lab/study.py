"""What runs every experiment of the laboratory: from its arms to a recorded result. No flags."""

import copy
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from batchgrow.names import flatten
from batchgrow.report import Run, drawing, read_run, swept
from batchgrow.report.runs import interval
from batchgrow.run.folder import run_folder
from experiments.grid import changed
from experiments.lab import EXPERIMENTS

Facts = dict[str, Any]


class Arm(NamedTuple):
    """Runs that differ in the seed only.

    Attributes:
      labels: what tells it from the other arms, such as {"batch": 32}.
      changes: the fields that it changes, by their dotted names.
      start_from: the labels of the arm whose run of the same seed it starts from, as `init.run`;
        None for random parameters. That arm itself has no `start_from`.
    """

    labels: Mapping[str, Any]
    changes: Mapping[str, Any]
    start_from: Mapping[str, Any] | None = None

    @property
    def folder(self) -> str:
        return _folder(self.labels)


def _folder(labels: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


class Cell(NamedTuple):
    """A run to make: its arm, its seed, its config (locked) and its folder."""

    arm: Arm
    seed: int
    config: Any
    folder: str


class Trial(NamedTuple):
    """One run of an arm.

    Attributes:
      labels: those of the arm.
      seed: the seed.
      run: the run; None if it diverged.
      measured: what `Study.measure` returned for its folder.
    """

    labels: Mapping[str, Any]
    seed: int
    run: Run | None
    measured: Mapping[str, Any]

    def final(self, column: str) -> float | None:
        """The last value of a column of the rows; None if the run diverged."""
        return self.run.final(column) if self.run else None


@dataclass(frozen=True)
class Number:
    """A number of ours beside the source's.

    Attributes:
      what: the name of the number.
      ours: our value; None if it could not be measured.
      low, high: the ends of its 95 % interval, None for a single value.
      n: how many runs it comes from.
      source: the source's value as text; "" if it gives none.
      sure: how sure the source's value is: "read", "unverified", or "computed".
    """

    what: str
    ours: float | None
    low: float | None = None
    high: float | None = None
    n: int = 1
    source: str = ""
    sure: str = ""


@dataclass(frozen=True)
class Verdict:
    """What an experiment found.

    Attributes:
      numbers: the table.
      charts: the figure, one panel each, in the form of `report.swept.swept`.
      finding: one sentence.
    """

    numbers: Sequence[Number]
    charts: Sequence[Facts]
    finding: str


@dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
      claim: the claim in one sentence.
      source: where it is from.
      config: returns the config that the arms change.
      arms: the arms.
      seeds: how many seeds each arm has, from 0 on.
      judge: turns the finished trials into a verdict.
      measure: measures a finished run folder, once; or None.
      note: how the set-up differs from the source's.
    """

    claim: str
    source: str
    config: Callable[[], Any]
    arms: Sequence[Arm]
    seeds: int
    judge: Callable[[Sequence[Trial]], Verdict]
    measure: Callable[[str], Mapping[str, Any]] | None = None
    note: str = ""


def find_study(name: str) -> Study:
    """Returns the study of a name.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment {name!r}; choose {', '.join(EXPERIMENTS)}")
    return importlib.import_module(f"experiments.lab.{name}").STUDY


def cells(study: Study, folder: str, seeds: int | None = None) -> Iterator[Cell]:
    """Yields every run, seeds outermost.

    Args:
      study: the study.
      folder: the folder of its runs.
      seeds: how many; None for the study's own number.
    """
    base = study.config()
    with base.unlocked():
        base.run.tensorboard = base.run.progress = False
    for seed in range(study.seeds if seeds is None else seeds):
        for arm in study.arms:
            changes = {"seed": seed, **arm.changes}
            if arm.start_from is not None:
                source = os.path.join(folder, _folder(arm.start_from), str(seed))
                changes["init.run"] = str(run_folder(source))
            config = changed(copy.deepcopy(base), changes)
            yield Cell(arm, seed, config.lock(), os.path.join(folder, arm.folder, str(seed)))


def trials_of(study: Study, grid: Iterable[Cell]) -> list[Trial]:
    """Reads the runs of all cells, and measures those that were not measured before."""
    trials = []
    for arm, seed, _, folder in grid:
        finished = (epath.Path(folder) / "summary.json").exists()
        measured: Mapping[str, Any] = {}
        if finished and study.measure is not None:
            path = epath.Path(folder) / "measured.json"
            if not path.exists():
                path.write_text(json.dumps(study.measure(folder)))
            measured = json.loads(path.read_text())
        trials.append(Trial(arm.labels, seed, read_run(folder) if finished else None, measured))
    return trials


def record(name: str, study: Study, trials: Sequence[Trial], command: str) -> Facts:
    """Returns the result of a study as plain JSON."""
    verdict = study.judge(trials)
    runs = [trial.run for trial in trials if trial.run]
    summaries = [run.summary for run in runs if run.summary]
    return {
        "name": name,
        "claim": study.claim,
        "source": study.source,
        "note": study.note,
        "finding": verdict.finding,
        "numbers": [vars(number) for number in verdict.numbers],
        "charts": list(verdict.charts),
        "command": command,
        "config": flatten(study.config().to_dict()),
        "arms": [
            {"labels": dict(arm.labels), "changes": dict(arm.changes)}
            | ({} if arm.start_from is None else {"start_from": dict(arm.start_from)})
            for arm in study.arms
        ],
        "seeds": sorted({trial.seed for trial in trials}),
        "num_runs": len(runs),
        "num_diverged": len(trials) - len(runs),
        "wall_seconds": sum(summary["wall_seconds"] for summary in summaries),
        "versions": summaries[0]["versions"] if summaries else {},
        "devices": summaries[0]["devices"] if summaries else {},
        "commits": sorted({str(summary["commit"]) for summary in summaries}),
    }


def write(result: Facts, folder: epath.Path) -> None:
    """Writes NAME.json and the figure, NAME.png, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n")
    panels = [swept.panel(chart) for chart in result["charts"]]
    drawn = drawing.draw(*panels, columns=min(2, len(panels)), one_legend=False)
    (folder / f"{result['name']}.png").write_bytes(drawing.png(drawn, dpi=110))


def table(result: Facts) -> list[list[str]]:
    """The numbers as rows of text, the header first."""
    rows = [["number", "source", "ours", "95 % interval", "n"]]
    for number in result["numbers"]:
        interval_text = "-"
        if number["low"] is not None:
            interval_text = f"{number['low']:.4g} to {number['high']:.4g}"
        source = number["source"] + (" (unverified)" if number["sure"] == "unverified" else "")
        ours = "-" if number["ours"] is None else f"{number['ours']:.4g}"
        rows.append([number["what"], source or "-", ours, interval_text, str(number["n"])])
    return rows


# What the experiments share.


def with_labels(trials: Iterable[Trial], **labels: Any) -> list[Trial]:
    """The trials with these labels."""
    return [t for t in trials if all(t.labels.get(k) == v for k, v in labels.items())]


def values_of(trials: Iterable[Trial], column: str, **labels: Any) -> dict[int, float]:
    """seed -> the last value of a column, of the trials with these labels that did not diverge."""
    found = {trial.seed: trial.final(column) for trial in with_labels(trials, **labels)}
    return {seed: value for seed, value in found.items() if value is not None}


def num_diverged(trials: Sequence[Trial], column: str, **labels: Any) -> int:
    """How many of the trials with these labels have no value of a column: they diverged."""
    return len(with_labels(trials, **labels)) - len(values_of(trials, column, **labels))


def number(what: str, values: Iterable[float], source: str = "", sure: str = "") -> Number:
    """The mean of some values with its interval."""
    values = list(values)
    if not values:
        return Number(what, None, n=0, source=source, sure=sure)
    return Number(what, *interval(values), len(values), source, sure)


def paired(what: str, first: Mapping[int, float], second: Mapping[int, float], **kw: Any) -> Number:
    """The mean over common seeds of second - first, with its interval."""
    return number(what, [second[s] - first[s] for s in sorted(first.keys() & second.keys())], **kw)


def line(trials: Sequence[Trial], label: str, x: str, y: str, **labels: Any) -> Facts:
    """A line of a chart: the column y against the label x, of the trials with these labels."""
    chosen = with_labels(trials, **labels)
    places = dict.fromkeys(trial.labels[x] for trial in chosen)
    samples = [(p, [*values_of(chosen, y, **{x: p}).values()]) for p in places]
    return {"label": label, "points": swept.points_of([s for s in samples if s[1]])}


def measured_line(label: str, samples: Mapping[Any, Sequence[float]]) -> Facts:
    """A line of a chart through the values at each x; an x without values is left out."""
    found = [(place, values) for place, values in samples.items() if values]
    return {"label": label, "points": swept.points_of(found)}


def line_of(label: str, found: Mapping[Any, Number]) -> Facts:
    """A line of a chart through the numbers at each x; an unknown number is left out."""
    points = [
        {"x": place, "n": n.n, "mean": n.ours, "low": n.low, "high": n.high}
        for place, n in found.items()
        if n.ours is not None
    ]
    return {"label": label, "points": points}


def chart(
    title: str,
    x: str,
    y: str,
    lines: Sequence[Facts],
    *,
    percent: bool | None = None,
    is_linear: bool = False,
) -> Facts:
    """A panel of the figure.

    Args:
      percent: whether y is a share; by default, whether it is an accuracy.
      is_linear: whether the axis of x is linear even if its values differ much.
    """
    percent = y.endswith("accuracy") if percent is None else percent
    lines = [entry for entry in lines if entry["points"]]
    made = {"title": title, "x": x, "y": y, "percent": percent, "lines": lines}
    return made | ({"is_linear": True} if is_linear else {})


def in_points(found: Number) -> str:
    """A difference of accuracies with its interval: "-0.42 (-0.60 to -0.24)"."""
    return _shown(found, lambda share: f"{100 * share:+.2f}")


def with_interval(found: Number, digits: int = 3) -> str:
    """A value with its interval: "413 (-77.1 to 1,150)"."""
    return _shown(found, lambda x: f"{x:,.0f}" if abs(x) >= 100 else f"{x:.{digits}g}")


def signed(found: Number) -> str:
    """A difference with its interval: "-0.042 (-0.060 to -0.024)"."""
    return _shown(found, lambda value: f"{value:+.3f}")


def _shown(found: Number, form: Callable[[float], str]) -> str:
    if found.ours is None:
        return "unknown"
    if found.low is None or found.high is None:
        return form(found.ours)
    return f"{form(found.ours)} ({form(found.low)} to {form(found.high)})"


def reference(label: str, points: Iterable[tuple[Any, float]]) -> Facts:
    """A thin line of a chart through these points."""
    made = [{"x": x, "n": 1, "mean": y, "low": None, "high": None} for x, y in points]
    return {"label": label, "is_reference": True, "points": made}
