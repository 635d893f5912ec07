"""The paper's figures from run folders, with matplotlib and without pyplot's global state.

Each figure is one panel, so that a page can set two side by side or, on a phone, one below the
other. Colours hold at least 3:1 against white and against the report's dark background; line
styles differ as well, for who does not see the colours.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from batchgrow.report.runs import TIMERS, PlanGroup, Run

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
# Smooth recipes grow on a long ladder; more lines than this would be a hatching.
MAX_BOUNDARIES = 12
MAX_POINTS = 2000  # of a curve


@dataclasses.dataclass(frozen=True)
class Line:
    """How a plan is drawn: the same in every figure."""

    colour: str
    style: str | tuple


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure: a file name, what it is called, and the function that draws it into axes."""

    name: str
    title: str
    draw: Callable[[Axes], None]
    height: float = HEIGHT


def lines_of_plans(families: Sequence[Sequence[PlanGroup]]) -> dict[str, Line]:
    """label -> Line. A variant has one colour in all families; its namesakes differ in style."""
    variants = list(dict.fromkeys(group.variant for family in families for group in family))
    lines = {}
    for family in families:
        for index, group in enumerate(family):
            colour = PALETTE[variants.index(group.variant) % len(PALETTE)]
            lines[group.label] = Line(colour, LINES[index % len(LINES)])
    return lines


def panels(groups: Sequence[PlanGroup], lines: dict[str, Line]) -> list[Panel]:
    """The figures of plans that belong together: Figure 1 of the paper, then its curves."""

    def schedule(field: str, label: str) -> Callable[[Axes], None]:
        return lambda axes: _draw_schedule(axes, groups, lines, field, label)

    def metric(x: str, y: str) -> Callable[[Axes], None]:
        return lambda axes: _draw_metric(axes, groups, lines, x, y)

    return [
        Panel("learning_rate", "Learning rate", schedule("learning_rate", "learning rate")),
        Panel("batch_size", "Batch size", schedule("global_batch_size", "batch size")),
        Panel("train_loss_epochs", "Training loss by epochs", metric("epoch", "train_loss")),
        Panel("train_loss_updates", "Training loss by updates", metric("updates", "train_loss")),
        Panel("test_accuracy_epochs", "Test accuracy by epochs", metric("epoch", "test_accuracy")),
        Panel(
            "test_accuracy_updates", "Test accuracy by updates", metric("updates", "test_accuracy")
        ),
    ]


def plan_panels(plans: Mapping[str, Iterable[Any]]) -> list[Panel]:
    """Four figures of plans before anything is trained, over epochs; the last has the legend.

    Args:
      plans: label -> the points of a schedule (`Schedule.points()`).
    """
    fields = {
        "learning_rate": "learning rate",
        "batch_size": "batch size",
        "noise_scale": "noise scale",
        "updates": "updates so far",
    }
    curves = {label: _thinned(list(points)) for label, points in plans.items()}

    def panel(field: str, label: str) -> Panel:
        return Panel(
            field, label.capitalize(), lambda axes: _draw_plans(axes, curves, field, label)
        )

    return [panel(field, label) for field, label in fields.items()]


def _thinned(points: list[Any]) -> list[Any]:
    """As many as a figure can show, spread over the epochs."""
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
    if field != "updates":
        values = {getattr(point, field) for points in curves.values() for point in points}
        axes.set_yscale("log")
        # Below a thousandth of its peak a learning rate does nothing; it may well end at 0.
        axes.set_ylim(bottom=max(axes.get_ylim()[0], max(values) / 1000))
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
    """The same text for the same figure: no date, no random ids."""
    with matplotlib.rc_context(STYLE), io.BytesIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue().decode("utf-8")


def inline_svg(text: str, name: str) -> str:
    """An SVG for inside a page: its ids its own, its ink and paper the page's."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg (.*?)width="\S+" height="\S+"', r"<svg \1", text, flags=re.DOTALL)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _draw_schedule(
    axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line], field: str, label: str
) -> None:
    """Over epochs, on a log scale. Thicker first: lines that coincide all stay in sight."""
    for index, group in enumerate(groups):
        line = lines[group.label]
        axes.plot(
            *_schedule_curve(group, field),
            color=line.colour,
            linestyle=line.style,
            linewidth=2.2 + 1.3 * (len(groups) - 1 - index),
            label=group.label,
        )
    axes.set_yscale("log")
    _value_ticks(axes, {value for group in groups for value in _schedule_curve(group, field)[1]})
    axes.set(xlabel="epochs", ylabel=label)
    _mark_boundaries(axes, groups)
    axes.legend()


def _schedule_curve(group: PlanGroup, field: str) -> tuple[list[float], list[float]]:
    """Epochs and values: the plan's steps, or the logged values where a phase is not constant."""
    plan = group.plan
    steps = [
        (phase.get(f"{field}_start", phase.get(field)), phase.get(f"{field}_end", phase.get(field)))
        for phase in plan["phases"]
    ]
    if any(start != end for start, end in steps) and any(run.rows for run in group.runs):
        rows = max((run.rows for run in group.runs), key=len)
        return [row["epoch"] for row in rows], [row[field] for row in rows]
    epochs = [
        phase[end] / plan["num_examples"]
        for phase in plan["phases"]
        for end in ("start_examples", "end_examples")
    ]
    return epochs, [value for pair in steps for value in pair]


def _draw_metric(
    axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line], x: str, y: str
) -> None:
    """Median over finished seeds with a band from least to most; unfinished runs thin."""
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
        label = f"{group.label} (unfinished)"
        for run in group.runs:
            if not run.finished:
                axes.plot(*_curve(run, x, y), color=line.colour, linewidth=1.0, label=label)
                label = None
    if y == "train_loss":
        axes.set_yscale("log")
        _plain_log_ticks(axes)
        axes.set_ylabel("training loss")
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.set_ylabel("test accuracy")
    axes.set_xlabel("epochs" if x == "epoch" else "updates")
    _mark_boundaries(axes, groups, lines if x == "updates" else None)
    axes.legend()


def _curve(run: Run, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """A training metric without the rows that the end of a phase has cut to a few examples."""
    rows = run.rows
    if y.startswith("train_") and rows:
        spans = np.diff([row["examples_seen"] for row in rows], prepend=0)
        full = spans >= np.median(spans) / 10
        rows = [row for row, is_full in zip(rows, full, strict=True) if is_full]
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _on_one_grid(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Seeds of one plan are logged at the same places; a resumed one may have others."""
    grid = max((x for x, _ in curves), key=len)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def _mark_boundaries(
    axes: Axes, groups: Sequence[PlanGroup], lines: dict[str, Line] | None = None
) -> None:
    """Where phases start: in epochs shared by the plans, in updates (`lines`) each plan's own."""
    if lines is None:
        epochs = {
            round(phase["start_examples"] / group.plan["num_examples"], 1)
            for group in groups
            for phase in group.plan["phases"][1:]
        }
        marks = [(epoch, INK) for epoch in epochs]
    else:
        marks = [
            (float(start), lines[group.label].colour)
            for group in groups
            for start in np.cumsum([phase["num_updates"] for phase in group.plan["phases"]])[:-1]
        ]
    if len(marks) <= MAX_BOUNDARIES:
        for place, colour in marks:
            axes.axvline(place, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)


def _value_ticks(axes: Axes, values: Collection[float]) -> None:
    """A step schedule has few values: those are the numbers to read, not the powers of ten."""
    _plain_log_ticks(axes)
    if len(values) <= MAX_BOUNDARIES:
        apart = [high for low, high in pairwise([0.0, *sorted(values)]) if high > 1.3 * low]
        axes.yaxis.set_major_locator(FixedLocator(apart))
        axes.yaxis.set_minor_locator(NullLocator())


def _plain_log_ticks(axes: Axes) -> None:
    """1000 and 0.01 rather than powers: readable small, and without mathtext in the SVG."""
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.3g}" if value < 1000 else f"{value:g}")
    )
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    if decades > 1.3:
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif decades > 0.6:
        axes.yaxis.set_minor_formatter(FuncFormatter(_one_two_five))
    else:
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _one_two_five(value: float, _: float) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def time_panel(seconds: dict[str, dict[str, float]]) -> Panel:
    """Stacked bars. seconds: plan -> timer -> seconds."""

    def draw_bars(axes: Axes) -> None:
        labels = list(seconds)
        left = np.zeros(len(labels))
        for timer, colour in zip(TIMERS, PALETTE, strict=False):
            width = np.array([seconds[label][timer] for label in labels])
            axes.barh(labels, width, left=left, color=colour, height=0.6, label=timer)
            left += width
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds")
        assert isinstance(axes.figure, Figure)
        axes.figure.legend(ncols=3, loc="outside upper center")

    return Panel("time", "Seconds by timer", draw_bars, height=1.6 + 0.5 * len(seconds))
