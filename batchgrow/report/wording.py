"""How the report says its numbers: one function for each kind of sentence and cell."""

import itertools
from collections.abc import Sequence
from typing import Any

from batchgrow.report.runs import Run

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Plans further apart than this are not called alike.
CLOSE_POINTS = 2.0
EMPTY = "–"


def percent(fraction: float | None, digits: int = 2) -> str:
    return EMPTY if fraction is None else f"{100 * fraction:.{digits}f}%"


def points(fraction: float) -> str:
    """A difference of accuracies, signed, in percentage points."""
    return f"{100 * fraction:+.2f}".replace("-", "−")


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


def mean_and_deviation(of: dict[str, Any] | None) -> str:
    if of is None:
        return EMPTY
    deviation = f" ± {100 * of['stdev']:.2f}" if of["stdev"] is not None else ""
    return f"{100 * of['mean']:.2f}{deviation}"


def plan_cells(plan: dict[str, Any]) -> tuple[str, ...]:
    """plan, updates, times fewer, test accuracy (median), mean ± sd, n, training time."""
    accuracy = plan["test_accuracy"]
    return (
        plan["plan"],
        count(plan["num_updates"]),
        f"{plan['times_fewer_updates']:.1f}x",
        percent(accuracy and accuracy["median"]),
        mean_and_deviation(accuracy),
        str(len(plan["seeds"])),
        duration(plan["wall_seconds"]),
    )


def headline(plans: Sequence[dict[str, Any]], same_noise_scale: bool | None) -> str:
    """The finding, from the numbers of the plans that have a finished run."""
    done = [plan for plan in plans if plan["test_accuracy"]]
    if not done:
        return "No run has finished yet."
    if len(done) == 1:
        accuracy = percent(done[0]["test_accuracy"]["median"], 1)
        updates = count(done[0]["num_updates"])
        return f"{done[0]['plan']}: {accuracy} test accuracy after {updates} updates."
    medians = [plan["test_accuracy"]["median"] for plan in done]
    most = max(done, key=lambda plan: plan["num_updates"])
    least = min(done, key=lambda plan: plan["num_updates"])
    how_many = NUMBERS[len(done)] if len(done) < len(NUMBERS) else str(len(done))
    low, high = percent(min(medians), 1), percent(max(medians), 1)
    apart = 100 * (max(medians) - min(medians))
    if apart < 0.05:
        spread = f"{how_many} plans at {low} test accuracy ({_seeds(done)})"
    else:
        within = f"within {apart:.1f} points" if apart <= CLOSE_POINTS else f"{apart:.1f} points"
        of = "of test accuracy" if apart <= CLOSE_POINTS else "of test accuracy apart"
        spread = f"{how_many} plans {within} {of} ({low} to {high}, {_seeds(done)})"
    noise = {True: "Same noise scale", False: "Different noise scales", None: "Noise scale unknown"}
    sentence = f"{noise[same_noise_scale]}: {spread}"
    if most["num_updates"] == least["num_updates"]:
        return f"{sentence}; all make {count(most['num_updates'])} updates."
    ratio = most["num_updates"] / least["num_updates"]
    return f"{sentence}; {least['plan']} needs {ratio:.1f}x fewer updates than {most['plan']}."


def _seeds(plans: Sequence[dict[str, Any]]) -> str:
    least = min(len(plan["seeds"]) for plan in plans)
    most = max(len(plan["seeds"]) for plan in plans)
    if most == 1:
        return "one seed each"
    return f"medians of {most} seeds" if least == most else f"medians of {least} to {most} seeds"


def verdict(paired: dict[str, Any]) -> str:
    """A paired difference in words, with its interval or why there is none."""
    difference = f"{points(paired['mean'])} points"
    if paired["low"] is None:
        return f"{difference}, one common seed: no interval"
    inside = paired["low"] <= 0 <= paired["high"]
    interval = f"95% interval {points(paired['low'])} to {points(paired['high'])}"
    judgement = "no difference shown" if inside else "they differ"
    return f"{difference}, {interval}, {paired['n']} common seeds: {judgement}"


def status(run: Run) -> str:
    if run.finished:
        return "finished"
    if not run.rows:
        return "unfinished: nothing logged yet"
    where = f"unfinished: epoch {run.epoch:.1f} of {run.plan['num_epochs']:g}"
    where += f", {count(run.num_updates)} of {count(run.plan['num_updates'])} updates"
    return where if run.rows[-1].get("train_loss") is not None else f"{where}, loss not finite"


def environment(run: dict[str, Any]) -> str:
    """Hardware, versions and commit of a run or summary that has `devices`, as one line."""
    devices, versions = run["devices"], run["versions"]
    processes = devices["processes"]
    where = f"{devices['count']} × {devices['kind']} ({devices['platform']}"
    where += f", {processes} processes)" if processes > 1 else ")"
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{where}; {what}; commit {run['commit'] or 'unknown'}"


def start_and_end(phase: dict[str, Any], field: str) -> str:
    """'0.1', or '0.1 → 0.02' where the phase is not constant."""
    start, end = f"{phase[field + '_start']:.4g}", f"{phase[field + '_end']:.4g}"
    return start if start == end else f"{start} → {end}"


def alternative_text(name: str, comparison: dict[str, Any]) -> str:
    """What figure `name` shows, with its numbers, for who cannot see it."""
    plans = comparison["plans"]
    done = [plan for plan in plans if plan["test_accuracy"]]
    if name == "learning_rate":
        said = [f"{plan['plan']} {_course(plan, 'learning_rate')}" for plan in plans]
        return _sentence("Learning rate against epochs, log scale", said)
    if name == "batch_size":
        said = [f"{plan['plan']} {_course(plan, 'global_batch_size')}" for plan in plans]
        return _sentence("Batch size against epochs, log scale", said)
    if name == "time":
        said = [f"{p['plan']} {duration(p['wall_seconds'])}, {_shares(p)}" for p in done]
        return _sentence("Seconds by timer, stacked", said)
    against = "updates" if name.endswith("updates") else "epochs"
    ends = {
        "updates": {plan["plan"]: f"after {count(plan['num_updates'])} updates" for plan in done},
        "epochs": {plan["plan"]: f"after {plan['num_epochs']:g} epochs" for plan in done},
    }[against]
    if name.startswith("train_loss"):
        said = [
            f"{plan['plan']} ends at {plan['train_loss']['median']:.3g} {ends[plan['plan']]}"
            for plan in done
        ]
        return _sentence(f"Training loss against {against}, log scale", said)
    said = [
        f"{plan['plan']} ends at {percent(plan['test_accuracy']['median'])} {ends[plan['plan']]}"
        for plan in done
    ]
    return _sentence(f"Test accuracy against {against}", said)


def _sentence(what: str, said: Sequence[str]) -> str:
    return f"{what}. {'; '.join(said) if said else 'No plan has finished'}."


def _course(plan: dict[str, Any], field: str) -> str:
    """The values a plan goes through: all of them, or the ends of a long course."""
    values: list[float] = []
    for phase in plan["phases"]:
        ends = [phase.get(f"{field}_start"), phase.get(f"{field}_end")]
        values += [phase[field]] * 2 if ends[0] is None else ends
    changes = [value for value, _ in itertools.groupby(values)]
    if len(changes) > 8:
        return f"from {changes[0]:.4g} to {changes[-1]:.4g} in {len(plan['phases'])} phases"
    return ", ".join(f"{value:.4g}" if value < 1e4 else f"{value:.0f}" for value in changes)


def _shares(plan: dict[str, Any]) -> str:
    whole = sum(plan["seconds"].values()) or 1.0
    shares = sorted(plan["seconds"].items(), key=lambda item: -item[1])
    return ", ".join(f"{100 * value / whole:.0f}% {timer}" for timer, value in shares if value > 0)
