"""A column of the runs against a field of their configs: the figure of a sweep. No jax."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
)

from batchgrow.names import flatten, hint
from batchgrow.report.axes import plain_log_ticks
from batchgrow.report.drawing import HEIGHT, INK, LINES, PALETTE, Panel
from batchgrow.report.runs import PlanGroup, identity, interval, label_of

Facts = dict[str, Any]
OF_SUMMARY = ("num_updates", "wall_seconds", "compile_seconds")  # columns beside those of the rows
MOST_PLACES = 9  # values of x that each have a tick
MOST_MARKS = 24  # points of a line that are marked
MOST_LETTERS = 32  # of all names below an axis
ROW_HEIGHT = 0.45  # inches
LOG_FACTOR = 8  # axes whose values differ by more are logarithmic


def swept(groups: Sequence[PlanGroup], x: str | None = None, y: str | None = None) -> Facts | None:
    """Returns the points of the figure, as plain JSON; None if there are none.

    Args:
      groups: the runs.
      x: a field by its dotted name; None: the one with the most values among the numeric fields
        that differ between runs of one variant.
      y: a column of the last row of a run, or one of `OF_SUMMARY`; None: the first test metric.

    Returns:
      `{"x", "y", "percent", "lines": [{"label", "points": [{"x", "n", "mean", "low", "high"}]}]}`.
      A line has the runs that differ in x (and the seed) only; low and high are the 95 % t-interval
      of the mean over seeds, None for one seed.

    Raises:
      ValueError: for a field or a column that no run has.
    """
    summaries = [run.summary for group in groups for run in group.finished if run.summary]
    columns = dict.fromkeys(name for summary in summaries for name in summary["final"])
    x = check_axes([group.runs[0].config for group in groups], columns, x, y)
    if x is None:
        return None
    y = y or f"test_{groups[0].metric.name}"
    lines: dict[str, list[PlanGroup]] = {}
    for group in groups:
        if x in flatten(group.runs[0].config):
            lines.setdefault(json.dumps(_rest(group, x), sort_keys=True), []).append(group)
    firsts = [line[0].runs[0] for line in lines.values()]
    found = [
        {"label": label_of(line[0].runs[0], firsts, besides=x), "points": _points(line, x, y)}
        for line in lines.values()
    ]
    found = [line for line in found if line["points"]]
    if not found:
        return None
    return {
        "x": x,
        "y": y,
        "percent": y.endswith(groups[0].metric.name) and groups[0].metric.percent,
        "lines": found,
    }


def _points(groups: Sequence[PlanGroup], x: str, y: str) -> list[Facts]:
    places = [flatten(group.runs[0].config)[x] for group in groups]
    values = [[*_values(group, y).values()] for group in groups]
    return points_of([pair for pair in zip(places, values, strict=True) if pair[1]])


def points_of(samples: Sequence[tuple[Any, Sequence[float]]]) -> list[Facts]:
    """Returns `{"x", "n", "mean", "low", "high"}` of each `(x, values)`, ordered by x."""
    points = []
    for place, values in samples:
        mean, low, high = interval(values)
        points.append({"x": place, "n": len(values), "mean": mean, "low": low, "high": high})
    if all(_is_number(point["x"]) for point in points):
        points.sort(key=lambda point: point["x"])
    return points


def _values(group: PlanGroup, column: str) -> dict[int, float]:
    """seed -> value, of the finished runs."""
    if column in OF_SUMMARY:
        return {run.seed: run.summary[column] for run in group.finished if run.summary}
    return group.finals(column)


def _rest(group: PlanGroup, x: str) -> dict[str, Any]:
    return {name: value for name, value in identity(group.runs[0].config).items() if name != x}


def check_axes(
    configs: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
    x: str | None = None,
    y: str | None = None,
) -> str | None:
    """Returns the field x of the figure, by default as `swept` chooses it; None if there is none.

    Args:
      configs: nested, as in config.json.
      columns: the metrics of the runs, beside `OF_SUMMARY`; none if they are not known yet.
      x, y: as `swept` takes them.

    Raises:
      ValueError: for a field or a column that no run has, or a column without a field.
    """
    known = dict.fromkeys(name for config in configs for name in identity(config))
    if x and x not in known:
        raise ValueError(f"--x={x}: no such config field{hint(x, known)}")
    x = x or _widest(configs)
    columns = [*columns]
    if y and columns and y not in (*columns, *OF_SUMMARY):
        raise ValueError(f"--y={y}: choose {', '.join((*columns, *OF_SUMMARY))}")
    if y and x is None:
        raise ValueError(f"--y={y}: no number differs between runs of one variant; give --x")
    return x


def _widest(configs: Sequence[Mapping[str, Any]]) -> str | None:
    """The numeric field with the most values among configs of one variant; None if none has two."""
    values: dict[tuple[str, str, str], set[float]] = {}
    for config in configs:
        for name, value in identity(config).items():
            if _is_number(value):
                values.setdefault((config["name"], config["variant"], name), set()).add(value)
    counts = {name: len(found) for (_, _, name), found in values.items() if len(found) > 1}
    return max(counts, key=lambda name: counts[name], default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def panel(found: Facts) -> Panel:
    """The figure: a line for each entry of `lines`, with a band of its interval from n = 3 on.

    Args:
      found: as `swept` returns it. A "title" replaces the one made of x and y; a line with
        "is_reference" is drawn thin, without points. With "is_linear" the axis of x is linear.
    """
    title = found.get("title") or f"{_words(found['y']).capitalize()} by {_words(found['x'])}"
    places = _places(found)
    height = ROW_HEIGHT * len(places) + 1 if _in_rows(places) else 0
    draw = functools.partial(_draw, found=found)
    return Panel("sweep", title, draw, height=max(HEIGHT, height))


def _places(found: Facts) -> list[Any]:
    return list(dict.fromkeys(point["x"] for line in found["lines"] for point in line["points"]))


def _in_rows(places: Sequence[Any]) -> bool:
    """Whether names are too long to stand side by side, so that each gets a row."""
    return not all(map(_is_number, places)) and sum(len(str(x)) for x in places) > MOST_LETTERS


def _draw(axes: Axes, found: Facts) -> None:
    places = _places(found)
    in_rows = _in_rows(places)
    if all(map(_is_number, places)):
        _draw_numbers(axes, found, places)
    else:
        _draw_names(axes, found, places, in_rows)
    means = [point["mean"] for line in found["lines"] for point in line["points"]]
    if found["percent"]:
        axis = axes.xaxis if in_rows else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    elif _is_wide(means):
        (axes.set_xscale if in_rows else axes.set_yscale)("log")
        plain_log_ticks(axes, "x" if in_rows else "y")
    words = _words(found["x"]), _words(found["y"])
    axes.set(xlabel=words[in_rows], ylabel=words[not in_rows])


def _draw_numbers(axes: Axes, found: Facts, places: Sequence[Any]) -> None:
    """Lines with bands."""
    for index, line in enumerate(found["lines"]):
        points, look = line["points"], _look(found, index)
        xs, (means, low, high) = [point["x"] for point in points], _bounds(points)
        if len(points) <= MOST_MARKS and not line.get("is_reference"):
            look |= {"marker": "o", "markersize": 5}
        axes.plot(xs, means, **look)
        axes.fill_between(xs, low, high, color=PALETTE[index % len(PALETTE)], alpha=0.18, lw=0)
    if not found.get("is_linear"):
        if _is_wide(places):
            axes.set_xscale("log")
        if len(places) <= MOST_PLACES:
            axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_names(axes: Axes, found: Facts, places: Sequence[Any], in_rows: bool) -> None:
    """Points with intervals, side by side at each name: nothing lies between two names."""
    num_lines = sum(not line.get("is_reference") for line in found["lines"])
    for index, line in enumerate(found["lines"]):
        points, look = line["points"], _look(found, index)
        at = np.array([places.index(point["x"]) for point in points], float)
        means, low, high = _bounds(points)
        errors: Any = [means - low, high - means]
        if line.get("is_reference"):
            errors = None
        else:
            at += (0.25 if in_rows else 0.15) * (index - (num_lines - 1) / 2)
            look |= {"linestyle": "", "capsize": 4, "marker": "o", "markersize": 5}
        if in_rows:
            axes.errorbar(means, at, xerr=errors, **look)
        else:
            axes.errorbar(at, means, yerr=errors, **look)
    axis = axes.yaxis if in_rows else axes.xaxis
    axis.set_major_locator(FixedLocator(range(len(places))))
    axis.set_major_formatter(FixedFormatter([str(place) for place in places]))
    if in_rows:
        axes.invert_yaxis()  # The first name is on top.
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _look(found: Facts, index: int) -> dict[str, Any]:
    """How the line of this number is drawn, with its label if there are others."""
    line = found["lines"][index]
    label = line["label"] if len(found["lines"]) > 1 else None
    if line.get("is_reference"):
        return {"color": INK, "linestyle": "--", "linewidth": 1.2, "label": label}
    style = LINES[index // len(PALETTE) % len(LINES)]
    colour = PALETTE[index % len(PALETTE)]
    return {"color": colour, "linestyle": style, "linewidth": 2.0, "label": label}


def _bounds(points: Sequence[Facts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means and the ends of the intervals."""
    # The interval of two values is 13 times their distance: it would hide the lines.
    low = [p["low"] if p["n"] > 2 else p["mean"] for p in points]
    high = [p["high"] if p["n"] > 2 else p["mean"] for p in points]
    return np.array([p["mean"] for p in points]), np.array(low), np.array(high)


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and 0 < min(values) and max(values) > LOG_FACTOR * min(values)


def _words(column: str) -> str:
    """A column in words; a field as it is."""
    return column if "." in column else column.replace("_", " ")


def alternative_text(found: Facts) -> str:
    """The text alternative of the figure, with its numbers."""
    said = [
        f"{line['label']}: " + ", ".join(f"{p['mean']:.4g} at {p['x']}" for p in line["points"])
        for line in found["lines"]
    ]
    return f"{_words(found['y']).capitalize()} against {found['x']}. {'; '.join(said)}."
