"""The paper's figures from run folders, with matplotlib but without pyplot's global state.

Each figure is one panel, so that a page can place two side by side or, on a phone, one below the
other. The contrast of each colour is at least 3:1 on white and on the report's dark background.
The lines also differ in style, for readers who cannot tell the colours apart.
"""

import dataclasses
import functools
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from batchgrow.report import wording
from batchgrow.report.folders import NOISE_SCALE, Metric, Run
from batchgrow.report.runs import PlanGroup

# Blue, vermilion, green and purple of Okabe & Ito, then darker forms of their orange and sky blue.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#c468a0", "#b07a00", "#3f93c6", "#7f7f7f")
LINES = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (7, 2, 1.5, 2)))
# Only these three depend on light or dark; `inline_svg` turns them into the page's CSS variables.
INK, GRID, PAPER = "#1c2129", "#d5d9e1", "#fffffe"
CSS_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", PAPER: "var(--paper)"}
STYLE: dict[Any, Any] = {
    "font.size": 13.0,
    "font.family": "DejaVu Sans",
    "legend.fontsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "text.parse_math": False,  # a variant may be named $x^$
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.facecolor": PAPER,
    "legend.edgecolor": GRID,
    "svg.fonttype": "none",
    "svg.hashsalt": "batchgrow",
}
WIDTH, HEIGHT = 5.2, 3.7  # inches
# Plans of smooth curves grow many times; more lines than this would cover the figure.
MAX_BOUNDARIES = 12
MAX_POINTS = 2000  # of a curve
MAX_LINES = 12  # plans of one figure


@dataclasses.dataclass(frozen=True)
class Line:
    """How a plan is drawn: the same in every figure."""

    colour: str
    style: str | tuple


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure: its file name, title, function that draws it, and whether the scale is log."""

    name: str
    title: str
    draw: Callable[[Axes], None]
    is_log: bool = False
    height: float = HEIGHT


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


def plan_panels(plans: Mapping[str, Iterable[Any]]) -> list[Panel]:
    """Figures of plans before anything is trained, over epochs; the last has the legend.

    Args:
      plans: label -> the points of a plan (`FixedPlan.points()`).
    """
    curves = {label: _thinned(list(points)) for label, points in plans.items()}
    names = {name for points in curves.values() for name in points[0].noise}
    fields = {
        "learning_rate": "learning rate",
        "batch_size": "batch size",
        **({name: name.replace("_", " ") for name in names} if len(names) == 1 else {}),
        "update": "updates so far",
    }

    def panel(field: str, label: str) -> Panel:
        return Panel(
            field, label.capitalize(), lambda axes: _draw_plans(axes, curves, field, label)
        )

    return [panel(field, label) for field, label in fields.items()]


def _thinned(points: list[Any]) -> list[Any]:
    """At most as many points as a figure can show, spread over the epochs."""
    spacing = points[-1].epoch / MAX_POINTS
    kept = points[:1]
    for point in points:
        if point.epoch - kept[-1].epoch >= spacing:
            kept.append(point)
    return kept


def _draw_plans(axes: Axes, curves: Mapping[str, list[Any]], field: str, label: str) -> None:
    for index, (plan, points) in enumerate(curves.items()):
        axes.plot(
            [point.epoch for point in points],
            [getattr(point, field) for point in points],
            drawstyle="steps-post",
            color=PALETTE[index % len(PALETTE)],
            linestyle=LINES[index % len(LINES)],
            linewidth=2.2 + 1.3 * (len(curves) - 1 - index),
            label=plan,
        )
    if field != "update":
        values = {getattr(point, field) for points in curves.values() for point in points}
        axes.set_yscale("log")
        _cut_at_a_thousandth(axes, values)
        _value_ticks(axes, values)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend()
    axes.set(xlabel="epochs", ylabel=label)


def draw(*drawn: Panel, columns: int = 1) -> Figure:
    """A figure of one panel, or of several in `columns`."""
    rows = -(-len(drawn) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * columns, drawn[0].height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for number, panel in enumerate(drawn, start=1):
            panel.draw(figure.add_subplot(rows, columns, number))
    return figure


def png(figure: Figure, dpi: int = 200) -> bytes:
    with matplotlib.rc_context(STYLE), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as SVG, without date or random ids: the same figure has the same text."""
    with matplotlib.rc_context(STYLE), io.BytesIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue().decode("utf-8")


def inline_svg(text: str, name: str) -> str:
    """An SVG to place inside a page. Its ids are unique, and it uses the page's colours."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg (.*?)width="\S+" height="\S+"', r"<svg \1", text, flags=re.DOTALL)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _draw_course(
    axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line], field: str, label: str
) -> None:
    """A field of the plans over epochs. The first lines are thicker, so that all stay visible."""
    for index, group in enumerate(groups):
        line = lines[group.label]
        axes.plot(
            *_course(group, field),
            color=line.colour,
            linestyle=line.style,
            linewidth=2.2 + 1.3 * (len(groups) - 1 - index),
            label=group.label,
        )
    values = {value for group in groups for value in _course(group, field)[1]}
    axes.set_yscale("log")
    if field == "learning_rate":
        _cut_at_a_thousandth(axes, values)
    _value_ticks(axes, values)
    axes.set(xlabel="epochs", ylabel=label)
    _mark_boundaries(axes, groups)
    if values:
        axes.legend()


def _course(group: PlanGroup, field: str) -> tuple[list[float], list[float]]:
    """Epochs and values: the plan's steps, or the logged values if a segment is not constant."""
    plan = group.plan
    steps = [
        tuple(segment.get(f"{field}_{end}", segment.get(field)) for end in ("start", "end"))
        for segment in plan["segments"]
    ]
    if any(start != end for start, end in steps) and any(run.rows for run in group.runs):
        rows = max((run.rows for run in group.runs), key=len)
        return [row["epoch"] for row in rows], [row[field] for row in rows]
    epochs = [
        segment[end] / plan["num_examples"]
        for segment in plan["segments"]
        for end in ("start_examples", "end_examples")
    ]
    return epochs, [value for pair in steps for value in pair]


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
            axes.plot(grid, np.median(values, axis=0), label=group.label, **look)
            if len(curves) > 1:
                least, most = values.min(axis=0), values.max(axis=0)
                axes.fill_between(grid, least, most, color=line.colour, alpha=0.2, linewidth=0)
        name = f"{group.label} (unfinished)"
        for run in group.runs:
            if not run.finished:
                axes.plot(*_curve(run, x, y), color=line.colour, linewidth=1.0, label=name)
                name = None
    if is_log:
        axes.set_yscale("log")
        plain_log_ticks(axes, percent=percent)
    elif percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set(xlabel="epochs" if x == "epoch" else x, ylabel=label)
    _mark_boundaries(axes, groups, lines if x == "updates" else None)
    axes.legend()


def _draw_noise(axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line]) -> None:
    """The measured noise scale (lines) and the batch of the plan (steps), both in examples.

    A batch below the noise scale wastes updates, a batch above it wastes examples.
    """
    for group in groups:
        line = lines[group.label]
        curves = [curve for r in group.runs if (curve := _curve(r, "epoch", NOISE_SCALE))[0].size]
        grid, values = _on_one_grid(curves)
        median = np.median(values, axis=0)
        axes.plot(grid, median, color=line.colour, linewidth=2.2, label=f"{group.label}: noise")
        epochs, sizes = _course(group, "batch_size")
        axes.plot(epochs, sizes, color=line.colour, linewidth=1.2, linestyle="--")
    axes.set_yscale("log")
    plain_log_ticks(axes)
    axes.set(xlabel="epochs", ylabel="examples (dashed: batch)")
    axes.legend()


def _curve(run: Run, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of the rows, for training metrics without rows of few examples.

    The row at the end of a segment may hold only a few examples, and its mean is noisy.
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


def _mark_boundaries(
    axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line] | None = None
) -> None:
    """Marks the starts of segments: over epochs in one colour, over updates in each plan's."""
    if lines is None:
        epochs = {
            round(segment["start_examples"] / group.plan["num_examples"], 1)
            for group in groups
            for segment in group.plan["segments"][1:]
        }
        marks = [(epoch, INK) for epoch in epochs]
    else:
        marks = [
            (float(start), lines[group.label].colour)
            for group in groups
            for start in itertools.accumulate(
                segment["num_updates"] for segment in group.plan["segments"][:-1]
            )
        ]
    if len(marks) <= MAX_BOUNDARIES:
        for place, colour in marks:
            axes.axvline(place, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)


def _cut_at_a_thousandth(axes: Axes, values: Collection[float]) -> None:
    """Cuts the values at a thousandth of the peak, because a learning rate may end at 0."""
    axes.set_ylim(bottom=max(axes.get_ylim()[0], max(values) / 1000))


def _value_ticks(axes: Axes, values: Collection[float]) -> None:
    """Ticks at the values themselves if they are few, otherwise at powers of ten."""
    plain_log_ticks(axes)
    if len(values) <= MAX_BOUNDARIES:
        apart = [
            high for low, high in itertools.pairwise([0.0, *sorted(values)]) if high > 1.3 * low
        ]
        axes.yaxis.set_major_locator(FixedLocator(apart))
        axes.yaxis.set_minor_locator(NullLocator())


def plain_log_ticks(
    axes: Axes, direction: Literal["x", "y"] = "y", *, percent: bool = False
) -> None:
    """1000 and 0.01 rather than powers of ten, which are hard to read when small."""
    axis = axes.yaxis if direction == "y" else axes.xaxis

    def show(value: float, _: float) -> str:
        value = 100 * value if percent else value
        return (f"{value:.3g}" if value < 1000 else f"{value:g}") + percent * "%"

    def show_1_2_5(value: float, _: float) -> str:
        return show(value, _) if f"{value:e}"[0] in "125" else ""

    axis.set_major_formatter(FuncFormatter(show))
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    if decades > 1.3:
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_minor_formatter(FuncFormatter(show_1_2_5 if decades > 0.6 else show))


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
        assert isinstance(axes.figure, Figure)
        axes.figure.legend(ncols=3, loc="outside upper center")

    return Panel("time", "Seconds by timer", draw_bars, height=1.6 + 0.5 * len(seconds))
