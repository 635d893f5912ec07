"""The paper's figures from run folders: the course of each plan, its curves and its time."""

import dataclasses
import functools
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from batchgrow.plan.noise import NOISE_SCALE
from batchgrow.report import wording
from batchgrow.report.axes import (
    count_ticks,
    cut_at_a_thousandth,
    mark_boundaries,
    marker,
    plain_log_ticks,
    value_ticks,
)
from batchgrow.report.drawing import LINES, PALETTE, Line, Panel
from batchgrow.report.folders import Metric, Run
from batchgrow.report.runs import PlanGroup

MAX_LINES = 12  # plans of one figure


def lines_of_plans(families: Sequence[Sequence[PlanGroup]]) -> dict[str, Line]:
    """label -> Line. A variant has one colour in all families, in different styles."""
    names = {group.label: group.variant or group.label for family in families for group in family}
    variants = list(dict.fromkeys(names.values()))
    lines = {}
    for family in families:
        for index, group in enumerate(family):
            colour = PALETTE[variants.index(names[group.label]) % len(PALETTE)]
            lines[group.label] = Line(colour, LINES[index % len(LINES)])
    return lines


def panels(groups: Sequence[PlanGroup], lines: dict[str, Line]) -> list[Panel]:
    """The figures of plans that belong together: Figure 1 of the paper, then its curves."""

    def course(field: str, label: str) -> Panel:
        draw = functools.partial(_draw_course, groups=groups, lines=lines, field=field, label=label)
        return Panel(field, label.capitalize(), draw, is_log=True)

    def curve(name: str, column: str, label: str, metric: Metric, x: str) -> Panel:
        is_log = metric.better == "lower" and _spans_a_factor(groups, column, 2.0)
        look = {"label": label, "percent": metric.percent, "is_log": is_log}
        draw = functools.partial(_draw_curves, groups=groups, lines=lines, x=x, y=column, **look)
        against = "epochs" if x == "epoch" else x
        title = f"{label.capitalize()} by {against}"
        return Panel(f"{name}_{against}", title, draw, is_log=is_log)

    measured = [g for g in groups if any(_curve(r, "epoch", NOISE_SCALE)[0].size for r in g.runs)]
    draw_noise = functools.partial(_draw_noise, groups=measured, lines=lines)
    noise = Panel("noise", "Gradient noise scale and batch size", draw_noise, is_log=True)
    first, loss = groups[0].metric, Metric("loss", "lower")
    test = wording.test(dataclasses.asdict(first))
    return [
        course("learning_rate", "learning rate"),
        course("batch_size", "batch size"),
        curve("train_loss", "train_loss", "training loss", loss, "epoch"),
        curve("train_loss", "train_loss", "training loss", loss, "updates"),
        curve("test", f"test_{first.name}", test, first, "epoch"),
        curve("test", f"test_{first.name}", test, first, "updates"),
        *([noise] if measured else []),
    ]


def _spans_a_factor(groups: Sequence[PlanGroup], column: str, factor: float) -> bool:
    """Whether a column's values are all positive and differ by more than this factor."""
    rows = (row for group in groups for run in group.runs for row in run.rows)
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and 0 < min(values) < max(values) / factor


def time_panel(seconds: dict[str, dict[str, float]]) -> Panel:
    """Stacked bars. seconds: plan -> timer -> seconds."""

    def draw_bars(axes: Axes) -> None:
        labels = [textwrap.fill(label, 28) for label in seconds]
        left = np.zeros(len(labels))
        timers = dict.fromkeys(timer for by_timer in seconds.values() for timer in by_timer)
        for index, timer in enumerate(timers):
            width = np.array([by_timer.get(timer, 0.0) for by_timer in seconds.values()])
            colour = PALETTE[index % len(PALETTE)]
            axes.barh(labels, width, left=left, color=colour, height=0.6, label=timer)
            left += width
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds")

    return Panel("time", "Seconds by timer", draw_bars, height=1.6 + 0.5 * len(seconds))


def _draw_course(
    axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line], field: str, label: str
) -> None:
    """A field of the plans over epochs. The first lines are thicker, so that all stay visible."""
    values = set()
    for index, group in enumerate(groups):
        line = lines[group.label]
        epochs, course = _course(group, field)
        values |= set(course)
        axes.plot(
            epochs,
            course,
            color=line.colour,
            linestyle=line.style,
            linewidth=2.2 + 1.3 * (len(groups) - 1 - index),
            label=group.label,
        )
    axes.set_yscale("log")
    if field == "learning_rate":
        cut_at_a_thousandth(axes, values)
    value_ticks(axes, values)
    axes.set(xlabel="epochs", ylabel=label)
    mark_boundaries(axes, groups)


def _course(group: PlanGroup, field: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the plan: of each segment its corners, then its end."""
    epochs, values = [], []
    for segment in group.plan["segments"]:
        start, end = segment["start_examples"], segment["end_examples"]
        if field == "learning_rate":
            last = end - segment["batch_size"]
            ends = [[start, segment[f"{field}_start"]], [last, segment[f"{field}_end"]]]
            corners = segment.get("learning_rates", ends)
        else:
            corners = [[start, segment[field]]]
        for position, value in [*corners, [end, corners[-1][1]]]:
            epochs.append(position / group.plan["num_examples"])
            values.append(value)
    return epochs, values


def _draw_curves(
    axes: Axes,
    groups: Sequence[PlanGroup],
    lines: dict[str, Line],
    x: str,
    y: str,
    label: str,
    percent: bool,
    is_log: bool,
) -> None:
    """Draws the median over finished seeds, a band of their range, and unfinished runs thinly."""
    for group in groups:
        line = lines[group.label]
        curves = [curve for run in group.finished if (curve := _curve(run, x, y))[0].size]
        if curves:
            grid, values = _on_one_grid(curves)
            look = {"color": line.colour, "linestyle": line.style, "linewidth": 2.2}
            look |= {"marker": marker(grid), "label": group.label}
            axes.plot(grid, np.median(values, axis=0), **look)
            if len(curves) > 1:
                least, most = values.min(axis=0), values.max(axis=0)
                axes.fill_between(grid, least, most, color=line.colour, alpha=0.2, linewidth=0)
        name = f"{group.label}, unfinished"
        for run in group.runs:
            if not run.finished:
                curve = _curve(run, x, y)
                look = {"linewidth": 1.0, "marker": marker(curve[0]), "label": name}
                axes.plot(*curve, color=line.colour, **look)
                name = None
    if is_log:
        axes.set_yscale("log")
        plain_log_ticks(axes, percent=percent)
    elif percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
    axes.set(xlabel="epochs", ylabel=label)
    if x == "updates":
        count_ticks(axes, x)
    mark_boundaries(axes, groups, lines if x == "updates" else None)
    axes.set_xlim(left=0)


def _draw_noise(axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line]) -> None:
    """The measured noise scale (lines) and the batch of the plan (steps), both in examples.

    A batch below the noise scale wastes updates, a batch above it wastes examples.
    """
    for group in groups:
        line = lines[group.label]
        curves = [curve for r in group.runs if (curve := _curve(r, "epoch", NOISE_SCALE))[0].size]
        grid, values = _on_one_grid(curves)
        median = np.median(values, axis=0)
        look = {"linewidth": 2.2, "marker": marker(grid), "label": group.label}
        axes.plot(grid, median, color=line.colour, **look)
        epochs, sizes = _course(group, "batch_size")
        axes.plot(epochs, sizes, color=line.colour, linewidth=1.2, linestyle="--")
    axes.set_yscale("log")
    plain_log_ticks(axes)
    axes.set(xlabel="epochs", ylabel="noise scale (dashed: batch)")


def _curve(run: Run, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns `x` and `y` of the rows that have a `y`.

    For training metrics it leaves out rows of few examples, whose mean is noisy. The row at the end
    of a segment may be one.
    """
    rows = run.rows
    if y.startswith("train_") and rows:
        spans = np.diff([row["examples_seen"] for row in rows], prepend=0)
        full = spans >= np.median(spans) / 10
        rows = [row for row, is_full in zip(rows, full, strict=True) if is_full]
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _on_one_grid(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The curves of all seeds on the grid of the longest; most have the same grid."""
    grid = max((x for x, _ in curves), key=len)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])
