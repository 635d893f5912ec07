"""The facts of some runs: every number of the report, and the table for a terminal. No jax."""

import dataclasses
import itertools
import json
import logging
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchgrow.plan.noise import NOISE_SCALE
from batchgrow.report import wording
from batchgrow.report.folders import Run
from batchgrow.report.runs import PlanGroup, group_by_plan, paired_differences, summarize
from batchgrow.report.swept import swept
from batchgrow.text_table import WIDTH, text_table

log = logging.getLogger(__name__)
Facts = dict[str, Any]
# variant -> {"test_METRIC": value, "updates", "source"}, where METRIC is the task's first metric;
# optionally "optimizer", if the values hold for one only, and "command", which runs the plan.
Paper = Mapping[str, Mapping[str, Any]]

# Two plans have the same noise scale if it agrees within 5% in 95% of the run. It may end at 0:
# values below a thousandth of its peak are replaced by that value.
NOISE_TOLERANCE, NOISE_SHARE, NOISE_FLOOR = 0.05, 0.95, 1e-3
NOISE_GRID = 8  # places between two samples of the noise scale
RATES = ("examples_per_second", "share_of_peak")


def facts(
    runs: Sequence[Run],
    paper: Paper | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
) -> Facts:
    """Returns everything that the report says, as plain JSON types. Percentages are fractions.

    A run that repeats another one's config and seed is left out of the statistics, with a warning.

    Args:
      runs: the runs.
      paper: the paper's numbers.
      x, y: the field and the column of the figure of a sweep (see `swept.swept`).

    Raises:
      ValueError: if no run has logged anything, or a number of the paper, x or y is wrong.
    """
    if not any(run.rows for run in runs):
        raise ValueError(
            f"nothing logged in {', '.join(run.path for run in runs) or 'no run folder'}; "
            "train first, or wait for the first row of metrics.jsonl"
        )
    groups = group_by_plan(runs)
    for run, used in itertools.chain(*(group.repeated for group in groups)):
        log.warning("%s is left out: %s has the same config and seed", run.path, used.path)
    families = families_of(groups)
    return {
        "comparisons": [_comparison(family, paper or {}) for family in families],
        "sweep": swept(groups, x, y),
        "runs": [_run_facts(group, run) for group in groups for run in group.runs],
    }


def families_of(groups: Sequence[PlanGroup]) -> list[list[PlanGroup]]:
    """Plans that may be compared: of one experiment, task, model, optimizer, number of epochs."""
    families: dict[str, list[PlanGroup]] = {}
    for group in groups:
        key = json.dumps([_setting(group), dataclasses.asdict(group.metric)])
        families.setdefault(key, []).append(group)
    return list(families.values())


def _setting(group: PlanGroup) -> str:
    run, epochs = group.runs[0], group.plan["num_epochs"]
    words = (run.experiment, run.task["name"], run.config["model"]["name"], run.optimizer)
    return ", ".join([*words, f"{epochs:g} epochs"])


def _comparison(groups: Sequence[PlanGroup], paper: Paper) -> Facts:
    """The facts of one family. Its first plan, which has the most updates, is the baseline."""
    metric = dataclasses.asdict(groups[0].metric)
    plans = [_plan_facts(group, groups[0]) for group in groups]
    paired = [
        {"first": first.label, "second": second.label, **vars(difference)}
        for first, second, difference in paired_differences(groups)
    ]
    for row in paired:
        row["verdict"] = wording.verdict(row, metric)
    same = same_noise_scale([group.plan for group in groups if group.finished])
    return {
        "setting": _setting(groups[0]),
        "metric": metric,
        "headline": wording.headline(plans, metric, same),
        "same_noise_scale": same,
        "plans": plans,
        "paired": paired,
        "paper": _paper_rows(groups, plans, paper),
    }


def _plan_facts(group: PlanGroup, baseline: PlanGroup) -> Facts:
    plan, summaries = group.plan, [run.summary for run in group.finished if run.summary]
    test = summarize([*group.tests.values()])
    loss = summarize([*group.finals("train_loss").values()])
    time = summarize([summary["wall_seconds"] for summary in summaries])
    return {
        "plan": group.label,
        "variant": group.variant,
        "optimizer": group.optimizer,
        "seeds": [run.seed for run in group.finished],
        "num_runs": len(group.runs),
        "num_updates": group.num_updates,
        "num_epochs": plan["num_epochs"],
        "examples_seen": plan["segments"][-1]["end_examples"],
        "times_fewer_updates": baseline.num_updates / group.num_updates,
        "test": vars(test) if test else None,
        "train_loss": vars(loss) if loss else None,
        "wall_seconds": time.median if time else None,
        "seconds": _mean_seconds(summaries),
        "segments": _segments(group),
    }


def _mean_seconds(summaries: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """By timer, in the order of the summaries: the mean over seeds."""
    timers = dict.fromkeys(timer for summary in summaries for timer in summary["seconds"])
    return {
        timer: statistics.fmean(summary["seconds"].get(timer, 0.0) for summary in summaries)
        for timer in timers
    } or None


def _segments(group: PlanGroup) -> list[Facts]:
    """The plan's segments, with the median speed and share of peak of the finished runs."""
    summaries = [run.summary["segments"] for run in group.finished if run.summary]
    num_examples = group.plan["num_examples"]
    tokens = group.plan.get("tokens_per_example")
    segments = []
    for index, segment in enumerate(group.plan["segments"]):
        # Where a plan follows the noise, the segments of another seed may have other sizes.
        measured = [
            found
            for summary in summaries
            for found in summary[index : index + 1]
            if found["batch_size"] == segment["batch_size"]
        ]
        segments.append(
            segment
            | {
                "start_epoch": segment["start_examples"] / num_examples,
                "end_epoch": segment["end_examples"] / num_examples,
                "tokens": tokens and tokens * (segment["end_examples"] - segment["start_examples"]),
                **{name: _median([found.get(name) for found in measured]) for name in RATES},
            }
        )
    if group.runs[0].config.get("plan", {}).get("name") != "follow":
        return segments
    # Between two decisions is a segment; most do not change anything.
    sizes = itertools.groupby(segments, key=lambda segment: segment["batch_size"])
    return [_merged([*same]) for _, same in sizes]


def _merged(segments: Sequence[Facts]) -> Facts:
    """One segment for several that follow each other."""
    last = segments[-1]
    ends = {k: v for k, v in last.items() if k.endswith("_end") or k.startswith("end_")}
    sums = {
        name: last[name] and sum(segment[name] for segment in segments)
        for name in ("num_updates", "tokens")
    }
    rates = {name: _median([segment[name] for segment in segments]) for name in RATES}
    merged = segments[0] | ends | sums | rates
    if len(segments) > 1:
        merged.pop("learning_rates", None)  # Those of the first one alone.
    return merged


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    return statistics.median(known) if known else None


def same_noise_scale(plans: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the noise of these plans (plan.json) agrees; None for fewer than two plans.

    The noise is the noise scale, or what is called diffusion in plans for Adam. None if the plans
    have neither, or not the same of both, or no value yet, as a plan that decides late.

    An update has one learning rate for all of its examples, so at one epoch two plans may differ by
    as much as the curve falls within one batch. Each plan is therefore given the range of its noise
    scales within one batch, the largest there, and the ranges must overlap.
    """
    names = {wording.noise_name(plan) for plan in plans}
    name = names.pop() if len(names) == 1 else None
    if len(plans) < 2 or name is None:
        return None
    # plan.json has the values at the middles of equal parts of the run.
    size = min(len(plan[name]) for plan in plans)
    if size == 0:
        return None
    middles = np.arange(size * NOISE_GRID) / NOISE_GRID
    scales = [np.array(plan[name][:size], np.float64) for plan in plans]
    floor = NOISE_FLOOR * np.max(scales) or 1.0  # 1 if all are 0
    widths = np.max([_batch_widths(plan, middles, len(plan[name])) for plan in plans], axis=0)
    lows, highs = [], []
    for values in scales:
        logs = np.interp(middles, np.arange(size), np.log(np.maximum(values, floor)))
        windows = [logs[max(0, i - width) : i + width + 1] for i, width in enumerate(widths)]
        lows.append([window.min() for window in windows])
        highs.append([window.max() for window in windows])
    apart = np.max(lows, axis=0) - np.min(highs, axis=0)
    return bool(np.mean(apart < np.log1p(NOISE_TOLERANCE)) >= NOISE_SHARE)


def _batch_widths(plan: Mapping[str, Any], middles: np.ndarray, size: int) -> np.ndarray:
    """The batch size at each place of the grid, in steps of the grid, rounded up."""
    part = plan["num_examples"] * plan["num_epochs"] / size
    ends = [segment["end_examples"] for segment in plan["segments"]]
    batch_sizes = np.array([segment["batch_size"] for segment in plan["segments"]])
    index = np.searchsorted(ends, (middles + 0.5) * part, side="right")
    in_steps = batch_sizes[np.minimum(index, len(ends) - 1)] / part * NOISE_GRID
    return np.ceil(in_steps).astype(int)


def _paper_rows(groups: Sequence[PlanGroup], plans: Sequence[Facts], paper: Paper) -> list[Facts]:
    """The paper's numbers beside ours, also of variants that nobody has run."""
    metric = groups[0].metric
    rows = []
    for variant, entry in paper.items():
        value = entry.get(f"test_{metric.name}")
        if metric.percent and value is not None and not 0 <= value <= 1:
            raise ValueError(
                f"paper: {variant} test_{metric.name} is {value}; give a fraction from 0 to 1"
            )
        if entry.get("optimizer", groups[0].optimizer) != groups[0].optimizer:
            continue
        for group, plan in [
            (group, plan)
            for group, plan in zip(groups, plans, strict=True)
            if plan["variant"] == variant
        ] or [(None, None)]:
            finished = [run.summary for run in group.finished if run.summary] if group else []
            rows.append(
                {
                    "plan": plan["plan"] if plan else variant,
                    "paper_test": value,
                    "paper_updates": entry.get("updates"),
                    "source": entry.get("source", ""),
                    "command": entry.get("command", ""),
                    "test": plan["test"] if plan else None,
                    "num_updates": plan["num_updates"] if plan and plan["test"] else None,
                    "ran_on": list(dict.fromkeys(map(wording.environment, finished))),
                }
            )
    return rows


def _run_facts(group: PlanGroup, run: Run) -> Facts:
    summary = run.summary or {}
    return {
        "path": run.path,
        "plan": group.label,
        "seed": run.seed,
        "finished": run.finished,
        "status": wording.status(run),
        "epoch": run.epoch,
        "num_epochs": run.plan["num_epochs"],
        "num_updates": run.num_updates,
        "metric": dataclasses.asdict(run.metric),
        "test": run.test,
        "train_loss": run.rows[-1].get("train_loss") if run.rows else None,
        "wall_seconds": summary.get("wall_seconds"),
        "devices": summary.get("devices"),
        "versions": summary.get("versions"),
        "commit": summary.get("commit"),
        "command": summary.get("command"),
        "decisions": _decisions(run),
    }


def _decisions(run: Run) -> list[Facts]:
    """The decisions of a plan that follows the noise, with the noise scale that each was taken by.

    A row ends where a segment ends, so it holds what the decision there was taken by.
    """
    plan = run.config.get("plan", {})
    if plan.get("name") != "follow":
        return []
    noise = {row["examples_seen"]: row.get(NOISE_SCALE) for row in run.rows}
    return [
        {
            "epoch": after["start_examples"] / run.plan["num_examples"],
            "noise_scale": noise.get(before["end_examples"]),
            "factor": plan["factor"],
            "batch_size": before["batch_size"],
            "next_batch_size": after["batch_size"],
        }
        for before, after in itertools.pairwise(run.plan["segments"])
    ]


def text(found: Facts) -> str:
    """The facts as a table for a terminal, at most 100 columns wide."""
    blocks = []
    for comparison in found["comparisons"]:
        metric = comparison["metric"]
        header = ("plan", "updates", "fewer", wording.test(metric), "mean ± sd", "n", "time")
        rows = [header] + [wording.plan_cells(plan, metric) for plan in comparison["plans"]]
        blocks += [comparison["setting"], textwrap.fill(comparison["headline"], WIDTH)]
        blocks.append(text_table(rows, left=True))
        blocks += [
            "\n".join(
                textwrap.fill(f"{row['second']} - {row['first']}: {row['verdict']}", WIDTH)
                for row in comparison["paired"]
            )
        ]
    unfinished = [
        textwrap.fill(f"{run['path']}: {run['status']}", WIDTH, subsequent_indent="  ")
        for run in found["runs"]
        if not run["finished"]
    ]
    return "\n\n".join(block for block in [*blocks, "\n".join(unfinished)] if block)
