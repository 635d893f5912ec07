"""Run folders -> the facts, as a table for the terminal, JSON, figures and one HTML page. No jax.

`facts` computes every number once; the text, the JSON and the page only show them.
"""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchgrow.report import wording
from batchgrow.report.runs import (
    TIMERS,
    PlanGroup,
    Run,
    group_by_plan,
    paired_differences,
    summarize,
)

Facts = dict[str, Any]
# variant -> {"test_accuracy": fraction, "updates", "source"}, optionally "optimizer" (the row holds
# for that one only) and "command" (what fills the row where nobody has run it).
Paper = Mapping[str, Mapping[str, Any]]
TEXT_WIDTH = 100


def facts(runs: Sequence[Run], paper: Paper | None = None) -> Facts:
    """Everything that the report says, as plain JSON types; accuracies are fractions.

    Raises ValueError where none of the runs has logged anything.
    """
    if not any(run.rows for run in runs):
        raise ValueError(
            f"nothing logged in {', '.join(run.path for run in runs) or 'no run folder'}; "
            "train first, or wait for the first row of metrics.jsonl"
        )
    groups = group_by_plan(runs)
    families = families_of(groups)
    return {
        "comparisons": [_comparison(family, paper or {}) for family in families],
        "runs": [_run_facts(group, run) for group in groups for run in group.runs],
    }


def families_of(groups: Sequence[PlanGroup]) -> list[list[PlanGroup]]:
    """Plans worth comparing: the same experiment, network, optimizer and number of epochs."""
    families: dict[str, list[PlanGroup]] = {}
    for group in groups:
        families.setdefault(_setting(group), []).append(group)
    return list(families.values())


def _setting(group: PlanGroup) -> str:
    config, epochs = group.runs[0].config, group.plan["num_epochs"]
    words = (config["name"], config["model"]["name"], config["optimizer"]["name"])
    return ", ".join([*words, f"{epochs:g} epochs"])


def _comparison(groups: Sequence[PlanGroup], paper: Paper) -> Facts:
    """Of one family; the baseline is the plan with most updates, the first."""
    plans = [_plan_facts(group, groups[0]) for group in groups]
    paired = [
        {
            "first": first.label,
            "second": second.label,
            "n": difference.n,
            "mean": difference.mean,
            "low": difference.low,
            "high": difference.high,
        }
        for first, second, difference in paired_differences(groups)
    ]
    for row in paired:
        row["verdict"] = wording.verdict(row)
    same = _same_noise_scale([group for group in groups if group.finished])
    return {
        "setting": _setting(groups[0]),
        "headline": wording.headline(plans, same),
        "same_noise_scale": same,
        "plans": plans,
        "paired": paired,
        "paper": _paper_rows(groups, plans, paper),
    }


def _plan_facts(group: PlanGroup, baseline: PlanGroup) -> Facts:
    plan, finals = group.plan, [run.summary for run in group.finished if run.summary is not None]
    accuracy = summarize([final["final"]["test_accuracy"] for final in finals])
    loss = summarize([final["final"]["train_loss"] for final in finals])
    time = summarize([final["wall_seconds"] for final in finals])
    return {
        "plan": group.label,
        "variant": group.variant,
        "optimizer": group.optimizer,
        "seeds": [run.seed for run in group.finished],
        "num_runs": len(group.runs),
        "num_updates": plan["num_updates"],
        "num_epochs": plan["num_epochs"],
        "examples_seen": plan["phases"][-1]["end_examples"],
        "times_fewer_updates": baseline.plan["num_updates"] / plan["num_updates"],
        "test_accuracy": vars(accuracy) if accuracy else None,
        "train_loss": vars(loss) if loss else None,
        "wall_seconds": time.median if time else None,
        "seconds": _mean_seconds(finals),
        "phases": _phases(group),
    }


def _mean_seconds(summaries: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """By timer, mean over seeds."""
    if not summaries:
        return None
    return {
        timer: statistics.fmean(summary["seconds"].get(timer, 0.0) for summary in summaries)
        for timer in TIMERS
    }


def _phases(group: PlanGroup) -> list[Facts]:
    """The plan's, with the medians over the finished runs of speed and share of peak."""
    summaries = [run.summary["phases"] for run in group.finished if run.summary is not None]
    phases = []
    for index, phase in enumerate(group.plan["phases"]):
        measured = [summary[index] for summary in summaries if index < len(summary)]
        num_examples = group.plan["num_examples"]
        phases.append(
            phase
            | {
                "start_epoch": phase["start_examples"] / num_examples,
                "end_epoch": phase["end_examples"] / num_examples,
                **{
                    name: _median([phase.get(name) for phase in measured])
                    for name in ("images_per_second", "share_of_peak")
                },
            }
        )
    return phases


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    return statistics.median(known) if known else None


def _same_noise_scale(groups: Sequence[PlanGroup]) -> bool | None:
    """Whether the plans' noise scales agree within 5%; None for fewer than two plans.

    Phases of different plans begin within half a batch of each other, so the middles of a grid
    over the epochs are compared, and 95% of them must agree.
    """
    if len(groups) < 2:
        return None
    grid = (np.arange(1000) + 0.5) / 1000 * min(group.plan["num_epochs"] for group in groups)
    logs = []
    for group in groups:
        epochs, scales = [], []
        for phase in group.plan["phases"]:
            for end in ("start", "end"):
                epochs.append(phase[f"{end}_examples"] / group.plan["num_examples"])
                scales.append(max(phase[f"noise_scale_{end}"], 1e-12))
        logs.append(np.interp(grid, epochs, np.log(scales)))
    apart = np.max(logs, axis=0) - np.min(logs, axis=0)
    return bool(np.quantile(apart, 0.95) < np.log(1.05))


def _paper_rows(groups: Sequence[PlanGroup], plans: Sequence[Facts], paper: Paper) -> list[Facts]:
    """The paper's number beside ours; rows of variants that nobody has run stay empty."""
    rows = []
    for variant, entry in paper.items():
        accuracy = entry.get("test_accuracy")
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise ValueError(f"paper: {variant} test_accuracy is {accuracy}; give a fraction")
        if entry.get("optimizer", groups[0].optimizer) != groups[0].optimizer:
            continue
        ours = [plan for plan in plans if plan["variant"] == variant] or [None]
        for plan in ours:
            finished = [
                run.summary
                for group in groups
                for run in group.finished
                if plan and group.label == plan["plan"] and run.summary is not None
            ]
            rows.append(
                {
                    "plan": plan["plan"] if plan else variant,
                    "paper_test_accuracy": accuracy,
                    "paper_updates": entry.get("updates"),
                    "source": entry.get("source", ""),
                    "command": entry.get("command", ""),
                    "test_accuracy": plan["test_accuracy"] if plan else None,
                    "num_updates": plan["num_updates"] if plan and plan["test_accuracy"] else None,
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
        "test_accuracy": run.test_accuracy,
        "train_loss": run.rows[-1].get("train_loss") if run.rows else None,
        "wall_seconds": summary.get("wall_seconds"),
        "devices": summary.get("devices"),
        "versions": summary.get("versions"),
        "commit": summary.get("commit"),
        "command": summary.get("command"),
    }


def text(found: Facts) -> str:
    """The facts as a table for a terminal, at most 100 columns wide."""
    blocks = []
    for comparison in found["comparisons"]:
        header = ("plan", "updates", "fewer", "test accuracy", "mean ± sd", "n", "time")
        rows = [header] + [wording.plan_cells(plan) for plan in comparison["plans"]]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        widths[0] = min(widths[0], TEXT_WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
        blocks += [comparison["setting"], textwrap.fill(comparison["headline"], TEXT_WIDTH)]
        blocks.append(
            "\n".join(
                "  ".join(
                    [_cut(row[0], widths[0]).ljust(widths[0])]
                    + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
                )
                for row in rows
            )
        )
        blocks += [
            "\n".join(
                textwrap.fill(f"{row['second']} - {row['first']}: {row['verdict']}", TEXT_WIDTH)
                for row in comparison["paired"]
            )
        ]
    unfinished = [
        textwrap.fill(f"{run['path']}: {run['status']}", TEXT_WIDTH, subsequent_indent="  ")
        for run in found["runs"]
        if not run["finished"]
    ]
    return "\n\n".join(block for block in [*blocks, "\n".join(unfinished)] if block)


def _cut(label: str, width: int) -> str:
    return label if len(label) <= width else label[: width - 1] + "…"
