"""What a run writes down: rows against examples seen, TensorBoard events, a clock with names.

`metrics.jsonl` comes first: one JSON object a line, appended and flushed. A resumed run cuts it
back to its checkpoint and writes the same rows again, so none is lost and none stands twice.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

Row = dict[str, Any]

# Standing still for these is not training: throughput leaves them out.
PAUSES = ("compile", "eval", "checkpoint")
# Columns that differ between two runs of the same trajectory.
TIMING = ("images_per_second", "wall_seconds")


class Clock:
    """Seconds by name, carried on by a resumed run.

    Attributes:
      seconds: by timer: `compile` (waited for), `input`, `eval`, `checkpoint`, and `total`.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds = {"compile": 0.0, "input": 0.0, "eval": 0.0, "checkpoint": 0.0, "total": 0.0}
        self.seconds.update(seconds or {})
        self._since = time.perf_counter()
        self._lap = self._active()

    @contextlib.contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Counts the time inside under `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def total(self) -> float:
        """Seconds of this run so far, those before an interruption included."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._since
        self._since = now
        return self.seconds["total"]

    def lap(self) -> float:
        """Training seconds since the last lap, pauses left out."""
        active = self._active()
        lap, self._lap = active - self._lap, active
        return lap

    def by_name(self) -> dict[str, float]:
        """Seconds by timer, with `step` for what no timer claims; they add up to the total."""
        named = {name: value for name, value in self.seconds.items() if name != "total"}
        return named | {"step": self.total() - sum(named.values())}

    def _active(self) -> float:
        return self.total() - sum(self.seconds[name] for name in PAUSES)


class RunLog:
    """Rows of one run, in `metrics.jsonl` and TensorBoard.

    Args:
      workdir: the run folder.
      examples_seen: where the run starts; rows beyond it are cut off and come again.
      tensorboard: whether to write event files beside.
    """

    def __init__(self, workdir: epath.Path, *, examples_seen: int, tensorboard: bool):
        self._path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_rows(self._path) if row["examples_seen"] <= examples_seen]
        self._rewrite()
        self._file = None if _is_remote(self._path) else open(self._path, "a", encoding="utf-8")
        self._board = _event_writer(workdir, examples_seen) if tensorboard else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Row) -> None:
        """Appends a row and flushes it.

        Raises:
          OSError: if the disk is full or gone; the rows before stay as they are.
        """
        self.rows.append(row)
        if self._file is None:
            self._rewrite()  # object stores cannot append
        else:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name not in ("examples_seen", "updates") and math.isfinite(value):
                    self._board.add_scalar(f"by_examples/{name}", value, row["examples_seen"])
                    self._board.add_scalar(f"by_updates/{name}", value, row["updates"])

    def text(self, name: str, text: str) -> None:
        """Notes a text, such as the plan, in TensorBoard."""
        if self._board is not None:
            self._board.add_text(name, text)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Notes hyper-parameters with the final metrics, for TensorBoard's HParams tab."""
        if self._board is not None:
            self._board.add_hparams(dict(values), dict(metrics), name="hparams")

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _rewrite(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        if self._path.exists() and self._path.read_text() == text:
            return
        # Through a second file: a full disk leaves the old rows as they are.
        fresh = self._path.parent / "metrics.jsonl.new"
        fresh.write_text(text)
        fresh.replace(self._path)


def read_rows(path: epath.PathLike) -> list[Row]:
    """The rows of a `metrics.jsonl`; a last line that a crash cut short is left out."""
    path = epath.Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _event_writer(workdir: epath.Path, examples_seen: int) -> Any:
    from tensorboardX import SummaryWriter

    # What an interrupted run wrote beyond its checkpoint is hidden by purge_step.
    purge_step = examples_seen + 1 if examples_seen else None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)
