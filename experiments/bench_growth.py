"""Measure what a growth of the batch costs, with and without compiling ahead.

    python -m experiments.bench_growth [--json]

The training loop trains a wide ResNet on noise with a growing batch, twice in each repetition:

  naive_stall_ratio  each size is compiled when its segment begins
  stall_ratio        each size is compiled while the segment before trains; segments are long enough

Both ratios divide a stall by the median time of an update of the new size. The stall lasts from the
end of a segment, after its last update and its row, to the end of the first update of the next
segment. `slowdown_while_compiling` is the median time of an update during the background
compilation, divided by that of an update of the same size afterwards. No executable comes from a
cache, no checkpoint is written before the end, and the host waits for each update.
"""

import json
import math
import pathlib
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
from absl import flags

from batchgrow.experiment import Experiment
from batchgrow.plan import Point
from batchgrow.step import TrainState
from experiments import benchmark, timing
from experiments.timing import median
from experiments.watched import train_watched

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Batch size of the first segment.")
_FACTOR = flags.DEFINE_integer("factor", 2, "Factor of the batch at each growth.")
_GROWTHS = flags.DEFINE_integer("growths", 2, "Number of growths.")
_UPDATES = flags.DEFINE_integer(
    "updates", 20, "Timed updates of each segment. Those during which a size compiles do not count."
)
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", 3, "Number of repetitions; the result is their median."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 300.0, "Time limit: no repetition starts that would end later."
)

# Training and compiling share the host's cores, so that compiling takes longer than alone.
MARGIN = 3.0


class Compilations:
    """When threads other than the main one compiled, as JAX reports it."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._record)

    def under_way(self, moment: float) -> bool:
        """Whether one was under way at this moment, in seconds of `time.perf_counter`."""
        return any(start <= moment <= end for start, end in self._intervals)

    def _record(self, event: str, duration_secs: float, **_: Any) -> None:
        in_background = threading.current_thread() is not threading.main_thread()
        if in_background and event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._intervals.append((now - duration_secs, now))


@dataclass(frozen=True)
class Update:
    """When an update ended, and whether a compilation was under way then."""

    batch_size: int
    end: float
    compiling: bool


@dataclass(frozen=True)
class Timeline:
    """The updates of one run.

    Attributes:
      updates: in order.
      compile_seconds: what compiling took, by batch size.
      waited_seconds: how long the loop waited for that, by batch size.
    """

    updates: Sequence[Update]
    compile_seconds: dict[int, float]
    waited_seconds: dict[int, float]

    def durations(self, batch_size: int, compiling: bool | None = None) -> list[float]:
        """Of each update of this size but the first one."""
        return [
            later.end - earlier.end
            for earlier, later in pairwise(self.updates)
            if earlier.batch_size == later.batch_size == batch_size
            and compiling in (None, earlier.compiling)
            and earlier.compiling == later.compiling
        ]

    def stall_seconds(self, batch_size: int) -> float:
        """From the end of the last update before this size to the end of its first."""
        first = next(i for i, u in enumerate(self.updates) if u.batch_size == batch_size)
        return self.updates[first].end - self.updates[first - 1].end

    def stall_ratio(self, batch_size: int) -> float:
        """The same over the median update of this size."""
        return self.stall_seconds(batch_size) / (
            median(self.durations(batch_size, compiling=False)) or math.nan
        )

    def slowdown_while_compiling(self, batch_size: int) -> float | None:
        """None if no update was alone, or none had company."""
        during = median(self.durations(batch_size, compiling=True))
        alone = median(self.durations(batch_size, compiling=False))
        return during / alone if during and alone else None


def make_experiment(segments: Sequence[tuple[int, int]], *, compile_ahead: bool) -> Experiment:
    """Segments of `(batch_size, num_updates)`, one update in each dispatch."""
    return timing.make_experiment(
        segments,
        ghost_batch_size=_BATCH_SIZE.value,
        compile_ahead=compile_ahead,
        updates_per_dispatch=1,
    )


def measure(
    segments: Sequence[tuple[int, int]], compilations: Compilations, *, compile_ahead: bool
) -> Timeline:
    """Trains segments of `(batch_size, num_updates)` and notes when each update ends."""
    ends: list[tuple[int, float]] = []

    def watch(point: Point, state: TrainState) -> bool:
        state.sums["loss"].block_until_ready()
        ends.append((point.batch_size, time.perf_counter()))
        return False

    with tempfile.TemporaryDirectory() as workdir:
        experiment = make_experiment(segments, compile_ahead=compile_ahead)
        train_watched(experiment, workdir, watch)
        summary = json.loads((pathlib.Path(workdir) / "summary.json").read_text())
    found = {segment["batch_size"]: segment for segment in summary["segments"]}
    return Timeline(
        # Without the last update, which an evaluation follows.
        [Update(size, end, compilations.under_way(end)) for size, end in ends[:-1]],
        {size: segment["compile_seconds"] for size, segment in found.items()},
        {size: segment["waited_seconds"] for size, segment in found.items()},
    )


def long_enough(sizes: Sequence[int], naive: Timeline) -> list[tuple[int, int]]:
    """Segments that outlast the compilation of the next one, by what a naive run measured."""
    hidden = [naive.compile_seconds[size] for size in sizes[1:]] + [0.0]
    hidden[0] += naive.compile_seconds[sizes[0]]  # the evaluation, compiled before the second size
    return [
        (size, _UPDATES.value + math.ceil(MARGIN * seconds / (median(naive.durations(size)) or 1)))
        for size, seconds in zip(sizes, hidden, strict=True)
    ]


def bench(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each growth, medians over repetitions of a naive run and one compiled ahead."""
    short = [(size, max(4, _UPDATES.value)) for size in sizes]
    naive, ahead = [], []
    compilations = Compilations()
    started = time.perf_counter()
    while len(ahead) < _REPETITIONS.value:
        begun = time.perf_counter()
        naive.append(measure(short, compilations, compile_ahead=False))
        long = long_enough(sizes, naive[0])
        ahead.append(measure(long, compilations, compile_ahead=True))
        now = time.perf_counter()
        if now - started + (now - begun) > _SECONDS.value:
            break
    rows = []
    for before, size in pairwise(sizes):
        update = median([median(t.durations(size, compiling=False)) for t in ahead])
        rows.append(
            {
                "growth": f"{before} -> {size}",
                "update_ms": 1e3 * update if update else None,
                "compile_seconds": median([t.compile_seconds[size] for t in naive]),
                "naive_stall_ratio": median([t.stall_ratio(size) for t in naive]),
                "stall_ratio": median([t.stall_ratio(size) for t in ahead]),
                "stall_ms": 1e3 * (median([t.stall_seconds(size) for t in ahead]) or math.nan),
                "waited_seconds": median([t.waited_seconds[size] for t in ahead]),
                "slowdown_while_compiling": median(
                    [t.slowdown_while_compiling(before) for t in ahead]
                ),
                "repetitions": len(ahead),
            }
        )
    return rows


def main() -> str:
    """The table."""
    if min(_BATCH_SIZE.value, _GROWTHS.value, _REPETITIONS.value) < 1 or _FACTOR.value < 2:
        raise ValueError("--batch_size, --growths and --repetitions must be 1 or more, --factor 2")
    sizes = [_BATCH_SIZE.value * _FACTOR.value**i for i in range(_GROWTHS.value + 1)]
    model = timing.model_name(make_experiment([(sizes[0], 1)], compile_ahead=False))
    notes = [f"{model}, ghost batch {sizes[0]}; slowdown: of the size before"]
    return benchmark.report("bench_growth", bench(sizes), notes, dtype=timing.DTYPE.value)


if __name__ == "__main__":
    benchmark.run(main)
