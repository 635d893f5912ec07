"""A plan as plain numbers and as text."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from batchgrow.plan.recipe import Recipe, check_whole
from batchgrow.plan.segments import Segment
from batchgrow.text_table import text_table

NUM_NOISE_SCALES = 128  # in plan.json
NUM_SAMPLES = 513  # updates of a segment whose learning rates are looked at
# A learning rate between two corners may differ by this share from the straight line, and by any
# share below a thousandth of the segment's highest.
CORNER_SHARE, CORNER_FLOOR = 0.01, 1e-3


class Plan(Protocol):
    """The interface that this file needs of a `batchgrow.plan.plan.Plan`."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def bound(self) -> str: ...
    @property
    def end_examples(self) -> int: ...
    def known(self, history: Sequence[Segment] = ()) -> tuple[Segment, ...]: ...
    def learning_rates(self, segment: Segment, updates: np.ndarray | None = None) -> np.ndarray: ...
    def learning_rate_of(self, segment: Segment, update: int) -> float: ...
    @property
    def momentum_curve(self) -> Any: ...
    def momentum_of(self, segment: Segment, update: int) -> float: ...
    def noise_of(self, segment: Segment, update: int) -> float | None: ...


def to_dict(
    plan: Plan, history: Sequence[Segment] = (), num_devices: int | None = None
) -> dict[str, Any]:
    """Returns the known segments as plain numbers, ready for JSON.

    A value with `_start` is that of the first update of a segment, one with `_end` that of the
    last. "nominal_start_examples" is where the recipe puts the start of a segment, if that is not
    its start. If the learning rate of a segment does not follow the straight line between the two,
    "learning_rates" has corners `[examples seen, learning rate]` of a line that it follows. With
    `num_devices` each segment also has a `per_device_batch_size`, which is a fraction if the
    devices do not divide the batch.

    "noise_scale" has 128 values, so that plans can be compared at equal epochs: those of the
    updates that train on the middles of 128 equal parts of the recipe's run. Values after the
    known segments are left out. For optimizers with normalised steps they are called
    "diffusion", also in the segments.

    Raises:
      ValueError: if num_devices is below 1.
    """
    if num_devices is not None:
        check_whole("num_devices", num_devices)
    segments = plan.known(history)
    result: dict[str, Any] = {
        "num_examples": plan.recipe.num_examples,
        "num_epochs": plan.recipe.num_epochs,
        "num_updates": sum(segment.num_updates for segment in segments),
    }
    if plan.recipe.tokens_per_example is not None:
        result["tokens_per_example"] = plan.recipe.tokens_per_example
    if plan.recipe.coupling.noise is not None:
        result[plan.recipe.coupling.noise] = _noises(plan, segments)
    if plan.bound:
        result["bound"] = plan.bound
    return result | {"segments": [_row(plan, segment, num_devices) for segment in segments]}


def table(plan: Plan, history: Sequence[Segment] = (), num_devices: int | None = None) -> str:
    """Returns the known segments as rounded text of at most 100 columns, one line each.

    "0.01..0.1..0.02" are the values at the first update of a segment, at the update with the
    highest learning rate, and at the last update. The second is left out if it is not above both.
    """
    numbers = to_dict(plan, history, num_devices)
    lines = []
    for index, (segment, row) in enumerate(
        zip(plan.known(history), numbers["segments"], strict=True)
    ):
        extent = row["start_examples"], row["end_examples"], row["num_updates"]
        line = {"segment": str(index), **_extent(plan, *extent)}
        line["batch"] = str(row["batch_size"])
        if num_devices is not None:
            line["per device"] = f"{row['per_device_batch_size']:.6g}"
        peak = _peak(plan, segment)
        line["learning rate"] = _span(row, "learning_rate", plan.learning_rate_of(segment, peak))
        changes = "momentum_start" in row
        line["momentum"] = _span(row, "momentum") if changes else f"{row['momentum']:g}"
        noise = plan.recipe.coupling.noise
        if noise is not None:
            line[noise.replace("_", " ")] = _span(row, noise, plan.noise_of(segment, peak))
        lines.append(line)
    end = numbers["segments"][-1]["end_examples"] if lines else 0
    lines.append({"segment": "total", **_extent(plan, 0, end, numbers["num_updates"])})
    names = list(lines[0])
    cells = [names, *([line.get(name, "") for name in names] for line in lines)]
    bound = f"\nlargest batch bound by: {plan.bound}" if plan.bound else ""
    return text_table(cells) + bound


def _row(plan: Plan, segment: Segment, num_devices: int | None) -> dict[str, Any]:
    both = (0, segment.num_updates - 1)
    rates = [plan.learning_rate_of(segment, n) for n in both]
    row: dict[str, Any] = {
        "start_examples": segment.start_examples,
        "end_examples": segment.end_examples,
        "num_updates": segment.num_updates,
        "batch_size": segment.batch_size,
    }
    if segment.nominal_start_examples != segment.start_examples:
        row["nominal_start_examples"] = segment.nominal_start_examples
    if num_devices is not None:
        whole, rest = divmod(segment.batch_size, num_devices)
        row["per_device_batch_size"] = segment.batch_size / num_devices if rest else whole
    row |= {
        "learning_rate_start": rates[0],
        "learning_rate_end": rates[1],
        "momentum": segment.momentum,
    }
    corners = _corners(plan, segment)
    if len(corners) > 2:
        row["learning_rates"] = corners
    if plan.momentum_curve is not None:
        row["momentum_start"], row["momentum_end"] = (plan.momentum_of(segment, n) for n in both)
    name = plan.recipe.coupling.noise
    if name is not None:
        row[f"{name}_start"], row[f"{name}_end"] = (plan.noise_of(segment, n) for n in both)
    return row


def _corners(plan: Plan, segment: Segment) -> list[list[float]]:
    """Examples seen and learning rate at the corners of a line close to the segment's.

    It starts with the first and the last update, and adds the update that is farthest from the line
    until none is far (Ramer 1972, Douglas & Peucker 1973).
    """
    last = segment.num_updates - 1
    updates = _samples(0, last)
    rates = plan.learning_rates(segment, updates)
    heights = np.log(np.maximum(rates, max(CORNER_FLOOR * rates.max(), 1e-300)))
    corners, parts = {0, len(updates) - 1}, [(0, len(updates) - 1)]
    while parts:
        start, end = parts.pop()
        inside = slice(start, end + 1)
        line = np.interp(updates[inside], updates[[start, end]], heights[[start, end]])
        gaps = np.abs(heights[inside] - line)
        farthest = start + int(gaps.argmax())
        if gaps.max() > CORNER_SHARE:
            corners.add(farthest)
            parts += [(start, farthest), (farthest, end)]
    positions = segment.start_examples + segment.batch_size * updates
    return [[int(positions[corner]), float(rates[corner])] for corner in sorted(corners)]


def _noises(plan: Plan, segments: Sequence[Segment]) -> list[Any]:
    starts = [segment.start_examples for segment in segments]
    values = []
    for part in range(NUM_NOISE_SCALES):
        middle = (2 * part + 1) * plan.recipe.end_examples // (2 * NUM_NOISE_SCALES)
        position = min(middle, plan.end_examples - 1)
        if not segments or position >= segments[-1].end_examples:
            break
        segment = segments[bisect_right(starts, position) - 1]
        update = (position - segment.start_examples) // segment.batch_size
        values.append(plan.noise_of(segment, update))
    return values


def _extent(plan: Plan, start_examples: int, end_examples: int, num_updates: int) -> dict[str, str]:
    start, end = (n / plan.recipe.num_examples for n in (start_examples, end_examples))
    tokens = plan.recipe.tokens_per_example
    if tokens is None:
        amount = {"examples": f"{end_examples - start_examples:,}"}
    else:
        amount = {"tokens": f"{tokens * (end_examples - start_examples):,}"}
    return {
        "epochs": f"{start:.2f}-{end:.2f}",
        **amount,
        "updates": f"{num_updates:,}",
    }


def _peak(plan: Plan, segment: Segment) -> int:
    """The update of a segment with the highest learning rate, if there is one maximum."""
    first, last = 0, segment.num_updates - 1
    while True:
        updates = _samples(first, last)
        highest = int(plan.learning_rates(segment, updates).argmax())
        if len(updates) == last - first + 1:
            return int(updates[highest])
        first, last = (
            int(updates[max(highest - 1, 0)]),
            int(updates[min(highest + 1, len(updates) - 1)]),
        )


def _samples(first: int, last: int) -> np.ndarray:
    """All updates from first to last, or `NUM_SAMPLES` that are about equally far apart."""
    count = min(last - first + 1, NUM_SAMPLES)
    return np.unique(np.linspace(first, last, count).round().astype(np.int64))


def _span(row: dict[str, Any], key: str, peak: float | None = None) -> str:
    """The first value and the last, with the peak between them if it is above both."""
    values = [row[f"{key}_start"], row[f"{key}_end"]]
    if peak is not None and peak > max(values):
        values.insert(1, peak)
    shown = [f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}" for value in values]
    return "..".join(text for text, _ in itertools.groupby(shown))
