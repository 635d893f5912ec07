"""The timers of a run, and its clock. Standard library only, so that reports can import it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

TIMERS = ("compile", "input", "noise", "eval", "checkpoint")
# The parts of a run's wall time, in the order of tables; "step" is what no timer counts.
PARTS = ("compile", "input", "step", "noise", "eval", "checkpoint")
# Nothing is trained during these, so throughput does not count them.
PAUSES = ("compile", "noise", "eval", "checkpoint")
# Columns that differ between two runs of the same trajectory.
TIMING = (
    "examples_per_second",
    "input_share",
    "wall_seconds",
    *(f"{name}_seconds" for name in TIMERS),
)


class Clock:
    """Seconds by name, continued by a resumed run.

    Attributes:
      seconds: by timer: `compile` and `input` (waited for), `noise`, `eval`, `checkpoint`;
        `total`; and the training seconds, and those of input, at the last `lap`.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds: dict[str, float] = {
            name: 0.0 for name in (*TIMERS, "total", "lap", "lap_input")
        }
        self.seconds.update(seconds or {})
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def timer(self, name: str, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Counts the time inside under `name`, if `counts` says so at the end."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if counts():
                self.seconds[name] += time.perf_counter() - started

    def total(self) -> float:
        """Seconds of this run so far, including those before an interruption."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._since
        self._since = now
        return self.seconds["total"]

    def lap(self) -> tuple[float, float]:
        """Returns training seconds since the last lap, without pauses, and those of input."""
        seconds = self._active() - self.seconds["lap"]
        waited = self.seconds["input"] - self.seconds["lap_input"]
        self.seconds["lap"] += seconds
        self.seconds["lap_input"] += waited
        return seconds, waited

    def columns(self, num_examples: float) -> dict[str, float]:
        """Returns the columns of a row that `TIMING` names, and begins a new lap.

        Args:
          num_examples: the examples trained on since the last lap.
        """
        seconds, waited_for_input = self.lap()
        return {
            "examples_per_second": num_examples / max(seconds, 1e-9),
            "input_share": waited_for_input / max(seconds, 1e-9),
            "wall_seconds": self.total(),
            **{f"{name}_seconds": self.seconds[name] for name in TIMERS},
        }

    def by_name(self) -> dict[str, float]:
        """Seconds by timer, with `step` for the rest; they add up to the total."""
        named = {name: self.seconds[name] for name in TIMERS}
        return named | {"step": self.total() - sum(named.values())}

    def _active(self) -> float:
        return self.total() - sum(self.seconds[name] for name in PAUSES)
