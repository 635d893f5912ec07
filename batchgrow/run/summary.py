"""The content of `summary.json`, and what TensorBoard shows of a finished run."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from jax.sharding import Mesh

from batchgrow.cost import share_of_peak
from batchgrow.experiment import Experiment
from batchgrow.plan import Segment
from batchgrow.run import environment
from batchgrow.run.folder import trajectory_fields
from batchgrow.run.timers import Clock
from batchgrow.tasks import Task


def summarize(
    experiment: Experiment,
    mesh: Mesh,
    rows: Sequence[Mapping[str, Any]],
    segments: Sequence[Segment],
    compiled: Mapping[str, Mapping[str, Any]],
    clock: Clock,
    num_replaced: int,
) -> dict[str, Any]:
    """The content of `summary.json`.

    If rows were lost with a damaged file, "final" has what the others hold, and the best value is
    None where none of them has one.

    Args:
      experiment: what was trained.
      mesh: the devices of the last start.
      rows: the rows of `metrics.jsonl`.
      segments: the segments of the run.
      compiled: the compilation times of the update of each batch size.
      clock: the clock of the run.
      num_replaced: training records that were replaced, of all processes and starts.
    """
    metric = experiment.task.metrics[0]
    column = f"test_{metric.name}"
    tested = [row for row in rows if column in row]
    best = max if metric.better == "higher" else min
    seconds = clock.by_name()
    return {
        "final": {
            name: value
            for some, prefix in ((tested, "test_"), (rows, "train_"))
            for row in some[-1:]
            for name, value in row.items()
            if name.startswith(prefix)
        },
        "best": {"metric": column, "value": best((row[column] for row in tested), default=None)},
        "num_updates": sum(segment.num_updates for segment in segments),
        "examples_seen": segments[-1].end_examples,
        "num_epochs": experiment.plan.recipe.num_epochs,
        "wall_seconds": clock.total(),
        "compile_seconds": seconds["compile"],
        "seconds": seconds,
        "segments": _segments(rows, segments, compiled, share_of_peak(experiment, mesh)),
        "num_replaced_records": num_replaced,
        **environment.recorded(mesh.size),
    }


def _segments(
    rows: Sequence[Mapping[str, Any]],
    segments: Sequence[Segment],
    compiled: Mapping[str, Mapping[str, Any]],
    share: float | None,
) -> list[dict[str, Any]]:
    found = []
    for index, segment in enumerate(segments):
        rates = [row["examples_per_second"] for row in rows if row["segment"] == index]
        rate = median(rates) if rates else None
        found.append(
            {
                "batch_size": segment.batch_size,
                "num_updates": segment.num_updates,
                "examples_per_second": rate,
                "share_of_peak": rate * share if rate and share else None,
                **compiled.get(str(segment.batch_size), {}),
            }
        )
    return found


def compared(task: Task, summary: Mapping[str, Any]) -> dict[str, float]:
    """The metrics by which TensorBoard compares runs. It shows the first."""
    first, final = f"test_{task.metrics[0].name}", summary["final"]
    numbers = {name: summary[name] for name in ("num_updates", "wall_seconds", "compile_seconds")}
    return {first: final.get(first, math.nan), **numbers, **final}


def hyper_parameters(
    experiment: Experiment, settings: dict[str, Any], num_updates: int
) -> dict[str, Any]:
    """Returns the fields that determine a trajectory, without the data, for TensorBoard.

    TensorBoard sorts columns by name and shows five. This decides the names of the first columns
    and of all others.
    """
    name = ":".join(filter(None, map(settings.get, ("name", "variant")))) or experiment.name
    first = {"updates": num_updates, "name": name, "seed": experiment.seed}
    groups = ("ghost", "task.", "model.", "optimizer.", "plan.", "recipe.")
    return first | {
        f"with.{name}": value if isinstance(value, int | float | str) else str(value)
        for name, value in trajectory_fields(settings).items()
        if name.startswith(groups)
    }
