"""Panels, and figures of them as PNG and SVG, with matplotlib but without pyplot's global state.

Each figure of a report is one panel, so that a page can place two side by side or, on a phone, one
below the other. The contrast of each colour is at least 3:1 on white and on the report's dark
background. The lines also differ in style, for readers who cannot tell the colours apart.
"""

import dataclasses
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
# An inch of a legend has room for this many characters, and a handle with its margins takes those.
LEGEND_CHARACTERS, LEGEND_HANDLE = 12.5, 10


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


def look(index: int) -> Line:
    """The line of the plan of this number."""
    return Line(PALETTE[index % len(PALETTE)], LINES[index % len(LINES)])


def draw(*drawn: Panel, columns: int = 1, one_legend: bool = True) -> Figure:
    """A figure of one panel, or of several in `columns`.

    Legends are above the panels, where they cannot cover a curve.

    Args:
      drawn: the panels.
      columns: the number of panels side by side.
      one_legend: whether the panels share one legend: a label looks the same in all of them.
    """
    rows = -(-len(drawn) // columns)
    with matplotlib.rc_context(STYLE):
        size = (WIDTH * columns, max(panel.height for panel in drawn) * rows)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        for number, panel in enumerate(drawn, start=1):
            panel.draw(figure.add_subplot(rows, columns, number))
        if one_legend:
            _add_legend(figure, figure.axes, size[0], loc="outside upper center")
        else:
            for axes in figure.axes:
                _add_legend(axes, [axes], WIDTH, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _add_legend(holder: Figure | Axes, drawn: Sequence[Axes], width: float, **place: Any) -> None:
    """Adds a legend with one entry for each label.

    Args:
      holder: gets the legend.
      drawn: have the labels.
      width: of the legend, at most, in inches.
      place: where the legend is.
    """
    characters = round(width * LEGEND_CHARACTERS)
    found: dict[str, Any] = {}
    for axes in drawn:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(textwrap.fill(label, characters - LEGEND_HANDLE), handle)
    if not found:
        return
    lengths = [max(map(len, label.split("\n"))) + LEGEND_HANDLE for label in found]
    rows = 1  # The legend fills its columns one after another.
    while rows < len(found) and characters < sum(
        max(lengths[start : start + rows]) for start in range(0, len(found), rows)
    ):
        rows += 1
    holder.legend(found.values(), found.keys(), ncols=-(-len(found) // rows), **place)


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
