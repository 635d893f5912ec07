"""How the report writes its numbers: a function for each kind of sentence and table cell.

`metric` is a task's first metric as a dict with "name", "better" ("lower" or "higher"), "percent".
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from batchgrow.report.folders import Run

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Plans that differ by more are called different: a fraction of the metric, or of 1 if percent.
CLOSE = 0.02
EMPTY = "–"
Metric = Mapping[str, Any]


def name(metric: Metric) -> str:
    """'accuracy', 'bits per byte'."""
    return metric["name"].replace("_", " ")


def test(metric: Metric) -> str:
    """'test accuracy'."""
    return f"test {name(metric)}"


def percent(fraction: float | None, digits: int = 2) -> str:
    return EMPTY if fraction is None else f"{100 * fraction:.{digits}f}%"


def value(number: float | None, metric: Metric, digits: int = 2) -> str:
    """A value of the metric: '97.21%' with this number of digits, or '24.13'."""
    if number is None or metric["percent"]:
        return percent(number, digits)
    return plain(number)


def plain(number: float) -> str:
    """Four significant digits: '24.13', '1,234', '0.0312'."""
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.4g}"


def difference(number: float, metric: Metric) -> str:
    """A signed difference: '+0.42 points' of a percentage, '−0.31' of another metric."""
    if metric["percent"]:
        return f"{_signed(100 * number, '.2f')} points"
    return _signed(number, ".3g")


def _signed(number: float, form: str) -> str:
    return f"{number:+{form}}".replace("-", "−")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return EMPTY
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: int | float | None) -> str:
    return EMPTY if number is None else f"{number:,.0f}"


def mean_and_deviation(of: Mapping[str, Any] | None, metric: Metric) -> str:
    """'97.20 ± 0.13', in percent without the sign, or '24.13 ± 0.21'."""
    if of is None:
        return EMPTY
    unit, digits = (100, 2) if metric["percent"] else (1, None)
    if not of["stdev"]:
        mean = f"{unit * of['mean']:.2f}" if metric["percent"] else plain(of["mean"])
        return mean if of["stdev"] is None else f"{mean} ± 0"
    if digits is None:  # two significant digits of the deviation
        digits = min(6, max(0, 1 - math.floor(math.log10(of["stdev"]))))
    return f"{unit * of['mean']:,.{digits}f} ± {unit * of['stdev']:,.{digits}f}"


def plan_cells(plan: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    """plan, updates, times fewer, test metric (median), mean ± sd, n, training time."""
    test = plan["test"]
    return (
        plan["plan"],
        count(plan["num_updates"]),
        f"{plan['times_fewer_updates']:.1f}x",
        value(test and test["median"], metric),
        mean_and_deviation(test, metric),
        str(test["n"] if test else 0),
        duration(plan["wall_seconds"]),
    )


def noise_name(numbers: Mapping[str, Any]) -> str | None:
    """Returns what a plan.json or one of its segments calls the noise; None if it has none."""
    names = ("noise_scale", "diffusion")
    return next((n for n in names if n in numbers or f"{n}_start" in numbers), None)


def headline(
    plans: Sequence[Mapping[str, Any]], metric: Metric, same_noise_scale: bool | None
) -> str:
    """The main result, of the plans that have a finished run."""
    done = [plan for plan in plans if plan["test"]]
    if not done:
        return "No run has finished yet."
    if len(done) == 1:
        median = value(done[0]["test"]["median"], metric, 1)
        updates = count(done[0]["num_updates"])
        return f"{done[0]['plan']}: {test(metric)} {median} after {updates} updates."
    noise = (noise_name(done[0]["segments"][0]) or "noise_scale").replace("_", " ")
    starts = {True: f"Same {noise}", False: f"Different {noise}s", None: "Noise scale unknown"}
    sentence = f"{starts[same_noise_scale]}: {_spread(done, metric)}"
    most = max(done, key=lambda plan: plan["num_updates"])
    least = min(done, key=lambda plan: plan["num_updates"])
    if most["num_updates"] == least["num_updates"]:
        return f"{sentence}; all make {count(most['num_updates'])} updates."
    ratio = most["num_updates"] / least["num_updates"]
    return f"{sentence}; {least['plan']} needs {ratio:.1f}x fewer updates than {most['plan']}."


def _spread(done: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """How far apart the plans end: 'two plans end within 0.4 points of each other in ...'."""
    how_many = NUMBERS[len(done)] if len(done) < len(NUMBERS) else str(len(done))
    medians = [plan["test"]["median"] for plan in done]
    low, high = (value(end, metric, 1) for end in (min(medians), max(medians)))
    apart = max(medians) - min(medians)
    scale = 1.0 if metric["percent"] else max(map(abs, medians))
    if apart < 5e-4 * scale or low == high:
        return f"{how_many} plans end at {test(metric)} {low} ({_seeds(done)})"
    by = f"{100 * apart:.1f} points" if metric["percent"] else f"{apart:.2g}"
    where = f"within {by} of each other" if apart <= CLOSE * scale else f"{by} apart"
    return f"{how_many} plans end {where} in {test(metric)} ({low} to {high}, {_seeds(done)})"


def _seeds(plans: Sequence[Mapping[str, Any]]) -> str:
    least = min(plan["test"]["n"] for plan in plans)
    most = max(plan["test"]["n"] for plan in plans)
    if most == 1:
        return "one seed each"
    return f"medians of {most} seeds" if least == most else f"medians of {least} to {most} seeds"


def verdict(paired: Mapping[str, Any], metric: Metric) -> str:
    """A paired difference in words, with its interval or why there is none."""
    mean = difference(paired["mean"], metric)
    if paired["low"] is None:
        return f"{mean}, one common seed: no interval"
    if math.isclose(paired["low"], paired["high"], rel_tol=1e-9):
        # As of one test example more: equal differences of few seeds do not tell their spread.
        return f"{mean} in each of {paired['n']} common seeds: no interval"
    low, high = (difference(paired[end], metric).removesuffix(" points") for end in ("low", "high"))
    found = f"{mean}, 95 % interval {low} to {high}, {paired['n']} common seeds"
    if paired["low"] <= 0 <= paired["high"]:
        return f"{found}: no difference shown"
    higher, lower = paired["second"], paired["first"]
    if paired["mean"] < 0:
        higher, lower = lower, higher
    return f"{found}: {higher if metric['better'] == 'higher' else lower} is better"


def status(run: Run) -> str:
    """How far the rows of a run are; its checkpoint may be ahead of them."""
    if run.finished:
        return "finished"
    if not run.rows:
        return "unfinished: nothing logged yet"
    where = f"unfinished: last row at epoch {run.epoch:.1f} of {run.plan['num_epochs']:g}"
    where += f", {count(run.num_updates)} of {count(run.plan['num_updates'])} updates"
    return where if run.rows[-1].get("train_loss") is not None else f"{where}, loss not finite"


def environment(run: Mapping[str, Any]) -> str:
    """Hardware, versions and commit of a run or summary that has `devices`, as one line."""
    devices, versions = run["devices"], run["versions"]
    processes = devices["processes"]
    where = f"{devices['count']} × {devices['kind']} ({devices['platform']}"
    where += f", {processes} processes)" if processes > 1 else ")"
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{where}; {what}; commit {run.get('commit') or 'unknown'}"


def momentum(segment: Mapping[str, Any]) -> str:
    """'0.9', or '0.95 → 0.85' if it changes within the segment."""
    if "momentum_start" in segment:
        return start_and_end(segment, "momentum")
    return f"{segment['momentum']:g}"


def start_and_end(segment: Mapping[str, Any], field: str) -> str:
    """'0.1', or '0.1 → 0.02' if the field changes within the segment."""
    start, end = f"{segment[field + '_start']:.4g}", f"{segment[field + '_end']:.4g}"
    return start if start == end else f"{start} → {end}"


def alternative_text(figure: str, comparison: Mapping[str, Any], is_log: bool) -> str:
    """The text alternative of a figure, with its numbers."""
    plans, metric = comparison["plans"], comparison["metric"]
    done = [plan for plan in plans if plan["test"]]
    scale = ", log scale" if is_log else ""
    if figure == "learning_rate":
        said = [f"{plan['plan']} {_course(plan, 'learning_rate')}" for plan in plans]
        return _sentence(f"Learning rate against epochs{scale}", said)
    if figure == "batch_size":
        said = [f"{plan['plan']} {_course(plan, 'batch_size')}" for plan in plans]
        return _sentence(f"Batch size against epochs{scale}", said)
    if figure == "time":
        said = [f"{p['plan']} {duration(p['wall_seconds'])}, {_shares(p)}" for p in done]
        return _sentence("Seconds by timer, stacked", said)
    if figure == "noise":
        said = [f"{plan['plan']} batch size {_course(plan, 'batch_size')}" for plan in plans]
        return _sentence("Measured gradient noise scale and batch size against epochs", said)
    against = "updates" if figure.endswith("updates") else "epochs"
    is_loss = figure.startswith("train_loss")
    said = []
    for plan in done:
        end = plan["train_loss" if is_loss else "test"]
        if end:
            shown = plain(end["median"]) if is_loss else value(end["median"], metric)
            number = plan[f"num_{against}"]
            said.append(f"{plan['plan']} ends at {shown} after {number:,} {against}")
    what = "Training loss" if is_loss else test(metric).capitalize()
    return _sentence(f"{what} against {against}{scale}", said)


def _sentence(what: str, said: Sequence[str]) -> str:
    return f"{what}. {'; '.join(said) if said else 'No plan has finished'}."


def _course(plan: Mapping[str, Any], field: str) -> str:
    """The values of a plan in order: all of them, or the first and the last if there are many."""
    values: list[float] = []
    for segment in plan["segments"]:
        ends = [segment.get(f"{field}_start"), segment.get(f"{field}_end")]
        values += [segment[field]] * 2 if ends[0] is None else ends
    changes = [change for change, _ in itertools.groupby(values)]
    if len(changes) > 8:
        return f"from {changes[0]:.4g} to {changes[-1]:.4g} in {len(plan['segments'])} segments"
    return ", ".join(f"{change:.4g}" if change < 1e4 else f"{change:.0f}" for change in changes)


def _shares(plan: Mapping[str, Any]) -> str:
    whole = sum(plan["seconds"].values()) or 1.0
    shares = sorted(plan["seconds"].items(), key=lambda item: -item[1])
    return ", ".join(f"{100 * part / whole:.0f}% {timer}" for timer, part in shares if part > 0)
