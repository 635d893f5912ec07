"""Figures that answer how large a batch should be: time, noise, branches, steps. No jax.

Each takes plain numbers and returns a `drawing.Panel`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from batchgrow.report.axes import plain_log_ticks
from batchgrow.report.drawing import LINES, PALETTE, Panel

Curve = Sequence[tuple[float, float]]  # (x, y)


def update_time_panel(
    seconds: Curve, fitted: tuple[float, float], idle_below: float, wasted_above: float | None
) -> Panel:
    """The time of an update by batch size: flat, then linear.

    Args:
      seconds: (batch size, seconds of an update).
      fitted: (a, b) of seconds = a + b * batch size.
      idle_below: the batch size at which both parts are equal.
      wasted_above: the noise scale in examples, or None.
    """

    def draw(axes: Axes) -> None:
        sizes, times = np.array(seconds, float).T
        grid = np.geomspace(sizes.min(), sizes.max(), 100)
        axes.plot(sizes, 1e3 * times, "o", color=PALETTE[0], label="measured")
        axes.plot(grid, 1e3 * (fitted[0] + fitted[1] * grid), color=PALETTE[0], label="a + b B")
        axes.set(xscale="log", yscale="log")
        low, high = axes.get_xlim()
        look = {"alpha": 0.15, "linewidth": 0}
        if idle_below > low:
            axes.axvspan(
                low, min(idle_below, high), color=PALETTE[6], label="hardware idle", **look
            )
        if wasted_above is not None and wasted_above < high:
            start = max(wasted_above, low)
            axes.axvspan(start, high, color=PALETTE[1], label="examples wasted", **look)
        axes.set_xlim(low, high)
        plain_log_ticks(axes)
        _log_ticks_at(axes, sizes)
        axes.set(xlabel="batch size", ylabel="milliseconds of an update")

    return Panel("update_time", "Time of an update", draw, is_log=True)


def noise_panel(noise: Curve, plans: Mapping[str, Curve]) -> Panel:
    """The measured noise scale over epochs, and the batch sizes of plans.

    Args:
      noise: (epoch, noise scale in examples).
      plans: label -> (epoch, batch size) of each change, the end included.
    """

    def draw(axes: Axes) -> None:
        if noise:
            axes.plot(*np.array(noise, float).T, color=PALETTE[1], label="noise scale")
        for index, (label, steps) in enumerate(plans.items()):
            look = {"color": PALETTE[index % 2 * 2], "linestyle": LINES[index % len(LINES)]}
            axes.plot(*np.array(steps, float).T, drawstyle="steps-post", label=label, **look)
        axes.set_yscale("log")
        plain_log_ticks(axes)
        axes.set(xlabel="epochs", ylabel="examples")

    return Panel("noise_and_plan", "Noise scale and plans", draw, is_log=True)


def branch_panel(branches: Mapping[str, Curve], tolerance: float) -> Panel:
    """The loss of each branch minus that of the unchanged batch.

    Args:
      branches: checkpoint -> (batch size, difference of the loss).
      tolerance: the difference from which on a batch counts as too large.
    """

    def draw(axes: Axes) -> None:
        for index, (label, curve) in enumerate(branches.items()):
            colour = PALETTE[index % len(PALETTE)]
            style = LINES[index % len(LINES)]
            axes.plot(*np.array(curve, float).T, "o", color=colour, linestyle=style, label=label)
        axes.axhline(tolerance, color=PALETTE[6], linewidth=1.2, label="tolerance")
        lowest = min((y for curve in branches.values() for _, y in curve), default=0.0)
        axes.set_yscale("symlog", linthresh=tolerance)
        axes.set_ylim(bottom=min(2 * lowest, -tolerance))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        sizes = {x for curve in branches.values() for x, _ in curve}
        _log_ticks_at(axes, sorted(sizes))
        axes.set(xlabel="batch size", ylabel="loss minus the baseline's")

    return Panel("branches", "Branches at larger batches", draw)


def steps_panel(steps: Curve, fitted: tuple[float, float] | None, measured: float | None) -> Panel:
    """The steps to a target loss by batch size: perfect scaling, then diminishing returns.

    Args:
      steps: (batch size, fewest steps).
      fitted: (S_min, B_crit) of steps = S_min (1 + B_crit / B); None for the points alone.
      measured: B_simple in examples, or None.
    """

    def draw(axes: Axes) -> None:
        sizes, counts = np.array(steps, float).T
        axes.plot(sizes, counts, "o", color=PALETTE[0], label="best learning rate")
        if fitted is not None:
            curves(axes, sizes, *fitted)
        axes.set(xscale="log", yscale="log", ylim=(0.5 * counts.min(), 1.5 * counts.max()))
        plain_log_ticks(axes)
        _log_ticks_at(axes, sizes)
        axes.set(xlabel="batch size", ylabel="steps to the target")

    def curves(axes: Axes, sizes: np.ndarray, least: float, critical: float) -> None:
        grid = np.geomspace(sizes.min(), sizes.max(), 100)
        label = f"{least:.0f} (1 + {critical:.0f} / B)"
        axes.plot(grid, least * (1 + critical / grid), color=PALETTE[0], label=label)
        if measured is not None:
            scale = least * (1 + critical / sizes[0]) / (1 + measured / sizes[0])
            curve = scale * (1 + measured / grid)
            label = f"the same with B_simple {measured:.0f}"
            axes.plot(grid, curve, color=PALETTE[1], linestyle=LINES[1], label=label)
        perfect = least * (1 + critical / sizes[0]) * sizes[0] / grid
        axes.plot(grid, perfect, color=PALETTE[6], linestyle=LINES[2], label="perfect scaling")

    return Panel("steps", "Steps to the target loss", draw, is_log=True)


def _log_ticks_at(axes: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic axis of batch sizes with ticks at them, or at every second one of many."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)[:: 1 + len(sizes) // 8]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
