"""Axes of figures: scales, ticks that do not overlap, and marks where segments start."""

import itertools
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from batchgrow.report.drawing import INK, Line
from batchgrow.report.runs import PlanGroup

# Plans of smooth curves grow many times; more lines than this would cover the figure.
MAX_BOUNDARIES = 12
MAX_TICKS = 12  # of a vertical axis


def marker(points: Collection) -> str:
    """A dot for a curve of one point, of which a line would show nothing."""
    return "o" if len(points) == 1 else ""


def mark_boundaries(
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


def cut_at_a_thousandth(axes: Axes, values: Collection[float]) -> None:
    """Cuts the values at a thousandth of the peak, because a learning rate may end at 0."""
    axes.set_ylim(bottom=max(axes.get_ylim()[0], max(values) / 1000))


def value_ticks(axes: Axes, values: Collection[float]) -> None:
    """Ticks at the values themselves if they are few, otherwise at powers of ten."""
    plain_log_ticks(axes)
    if len(values) <= MAX_BOUNDARIES:
        low, high = axes.get_ylim()
        apart, shown = (high / low) ** (1 / MAX_TICKS), []
        for value in sorted(values):
            if low <= value and (not shown or value >= apart * shown[-1]):
                shown.append(value)
        axes.yaxis.set_major_locator(FixedLocator(shown))
        axes.yaxis.set_minor_locator(NullLocator())


def count_ticks(axes: Axes, label: str) -> None:
    """Ticks of the horizontal axis at whole numbers, few enough for thousands."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


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
    if decades > 2:
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_minor_formatter(FuncFormatter(show_1_2_5 if decades > 0.6 else show))
