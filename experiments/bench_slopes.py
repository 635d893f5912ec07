"""What a process keeps: memory, open files and threads over many rows and many runs.

    python -m experiments.bench_slopes [--json]

One run of a tiny network writes --rows rows, each with an evaluation and a checkpoint; then
--calls runs follow each other in the same process. After each row, and after each run, the process
counts its resident memory, its allocated memory, its open files and its threads. Resident memory
also contains code, and memory that glibc's malloc has freed and keeps for later. `slope` is that of
a straight line through the counts, with its 95 % interval; counts are averaged in up to 20 blocks
first, because neighbours are alike. The first fifth is left out: it fills caches.
"""

import ctypes
import dataclasses
import gc
import os
import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from batchgrow.experiment import Cadence, Experiment
from batchgrow.plan import Point
from batchgrow.step import TrainState
from experiments import benchmark, timing
from experiments.slope import fit

_ROWS = flags.DEFINE_integer("rows", 1000, "Rows of the long run.", lower_bound=20)
_CALLS = flags.DEFINE_integer("calls", 20, "Runs in one process.", lower_bound=10)

BATCH_SIZE = 64
UPDATES_PER_ROW = 4
ROWS_PER_CALL = 3
SELF = pathlib.Path("/proc/self")


class _Mallinfo2(ctypes.Structure):
    """What glibc's `mallinfo2` returns, in bytes of all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")
        + ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def allocated_kb() -> float:
    """What the process has allocated and not freed."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return (found.uordblks + found.hblkhd) / 1024


COUNTS: dict[str, Callable[[], float]] = {
    "memory_kb": lambda: int((SELF / "statm").read_text().split()[1]) * PAGE_KB,
    "allocated_kb": allocated_kb,
    "open_files": lambda: len(os.listdir(SELF / "fd")),
    "threads": lambda: len(os.listdir(SELF / "task")),
}
PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024


class Samples:
    """The counts of `COUNTS`, taken one after another."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {name: [] for name in COUNTS}

    def take(self) -> None:
        """Adds one sample of each."""
        for name, count in COUNTS.items():
            self._samples[name].append(count())

    def rows(self, per: str) -> list[dict[str, Any]]:
        """A row of the table for each count."""
        return [{"count": name, "per": per} | fit(values) for name, values in self._samples.items()]


def experiment(num_rows: int) -> Experiment:
    """A run of so many rows, each with an evaluation and a checkpoint."""
    every = BATCH_SIZE * UPDATES_PER_ROW
    made = timing.make_experiment(
        [(BATCH_SIZE, UPDATES_PER_ROW * num_rows)], ghost_batch_size=BATCH_SIZE, tiny=True
    )
    return dataclasses.replace(made, cadence=Cadence(log=every, evaluate=every, checkpoint=every))


def of_one_run(num_rows: int) -> list[dict[str, Any]]:
    """The slopes over the rows of one run."""
    samples = Samples()

    def watch(point: Point, state: TrainState) -> bool:
        samples.take()
        return False

    timing.train(experiment(num_rows), watch)
    return samples.rows("row")


def of_many_runs(calls: int) -> list[dict[str, Any]]:
    """The slopes over runs in one process."""
    samples = Samples()
    for _ in range(calls):
        timing.train(experiment(ROWS_PER_CALL), lambda point, state: False)
        gc.collect()
        samples.take()
    return samples.rows("run")


def main() -> str:
    """The table."""
    if not SELF.exists() or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        raise ValueError("bench_slopes needs Linux with glibc 2.33 or newer")
    rows = of_one_run(_ROWS.value) + of_many_runs(_CALLS.value)
    notes = [
        f"a row: {UPDATES_PER_ROW} updates of {BATCH_SIZE} examples, an evaluation and a "
        f"checkpoint; a run: {ROWS_PER_CALL} rows"
    ]
    return benchmark.report("bench_slopes", rows, notes, dtype=timing.DTYPE.value)


if __name__ == "__main__":
    benchmark.run(main)
