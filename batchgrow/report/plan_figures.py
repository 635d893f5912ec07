"""Figures of plans before anything is trained."""

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from batchgrow.report.axes import cut_at_a_thousandth, marker, value_ticks
from batchgrow.report.drawing import Panel, look

MAX_POINTS = 2000  # of a curve


def plan_panels(plans: Mapping[str, Iterable[Any]]) -> list[Panel]:
    """Figures of plans before anything is trained, over epochs.

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
        last = points[-1]
        end = last.epoch + last.accumulation_epochs * (1 - last.momentum)  # of the last update
        values = [getattr(point, field) for point in points]
        line = look(index)
        axes.plot(
            [*(point.epoch for point in points), end],
            [*values, values[-1]],
            drawstyle="steps-post",
            color=line.colour,
            linestyle=line.style,
            linewidth=2.2 + 1.3 * (len(curves) - 1 - index),
            marker=marker(points),
            label=plan,
        )
    if field != "update":
        values = {getattr(point, field) for points in curves.values() for point in points}
        axes.set_yscale("log")
        cut_at_a_thousandth(axes, values)
        value_ticks(axes, values)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="epochs", ylabel=label)
