"""The critical batch size by branches, beside the measured noise scale.

    python -m experiments.train --config=C --workdir=RUN --config.run.keep_checkpoints=100
    python -m experiments.critical_batch --config=C --workdir=RUN --examples=20000

The method of Merrill et al. (2025, arXiv 2505.23971): from a checkpoint of a run, short branches
continue with 1, 2, 4, ... times its batch, each with the coupled learning rate, on the same
examples. The critical batch size is the largest one before the loss exceeds that of the first
branch by --tolerance. The loss is the mean training loss of the last quarter of the branch, whose
examples are the same in all branches. --repeats takes other examples and averages.

B_simple is measured at the checkpoint itself, from --noise_examples.
"""

import json
import sys
from typing import Any

from absl import flags
from etils import epath

from batchgrow.compile import enable_compilation_cache
from batchgrow.plan import Segment
from batchgrow.plan.growth import check_exponent
from batchgrow.report.batch_figures import branch_panel
from batchgrow.report.drawing import draw, png
from batchgrow.run import environment
from batchgrow.run.checkpoints import Checkpoints, positions_of
from batchgrow.run.folder import FolderError, run_folder
from batchgrow.text_table import text_table
from experiments import cli
from experiments.launch import experiment_of, launch
from experiments.result_files import check_writable, write_result
from experiments.trials import (
    Trials,
    branch_length,
    branch_points,
    compared,
    mean_loss,
    piece_size_of,
)

_CONFIG = cli.config_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "The run folder with the checkpoints.")
_AT = flags.DEFINE_list("at", [], "Checkpoints, in examples; by default all.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Examples of a branch; None: half an epoch.")
_MULTIPLES = flags.DEFINE_integer(
    "multiples", 5, "Number of branches, at 1, 2, 4, ... batches.", lower_bound=1
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.01, "Increase of the loss from which on a batch is too large."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 2, "Repeats of each branch, on other examples.", lower_bound=1
)
_NOISE = flags.DEFINE_integer("noise_examples", 4096, "Examples for B_simple, at most an epoch.")
_OUT = flags.DEFINE_string(
    "out", "runs/critical_batch", "Path of the results, without .json and .png."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(_: list[str]) -> int:
    """Runs the branches, and prints the table."""
    config, out = _CONFIG.value, epath.Path(_OUT.value)
    check_writable(out)
    found = {"config": config.name, "tolerance": _TOLERANCE.value, "checkpoints": branches(config)}
    found |= environment.recorded()
    panel = branch_panel(curves_of(found["checkpoints"]), _TOLERANCE.value)
    write_result(out, found, png(draw(panel), dpi=100))
    print(json.dumps(found) if _JSON.value else f"{as_text(found)}\n{out}.png")
    return 0


def curves_of(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Returns the curves of the figure: (batch size, difference) where no branch diverged."""
    curves = {
        f"epoch {row['epoch']:g}": [
            (branch["batch_size"], branch["difference"])
            for branch in row["branches"]
            if branch["difference"] is not None
        ]
        for row in rows
    }
    return {label: curve for label, curve in curves.items() if curve}


def branches(config: Any) -> list[dict[str, Any]]:
    """Returns a row for each checkpoint. All of them are checked before the first branch.

    Raises:
      FolderError: for a folder without checkpoints, or without one of those asked for.
      ValueError: for a wrong flag.
    """
    experiment = experiment_of(config)
    data, plan, task = experiment.train_data, experiment.plan, experiment.task
    check_exponent(plan.recipe, config.plan.exponent, changes=True)
    known = positions_of(_WORKDIR.value)
    if not known:
        raise FolderError(f"workdir {_WORKDIR.value} has no checkpoints; train the config there")
    length = _EXAMPLES.value or data.num_examples // 2
    room = [position for position in known if position + length <= plan.recipe.end_examples]
    if not all(position.isdigit() for position in _AT.value):
        raise ValueError(
            f"--at={','.join(_AT.value)}: write positions in examples, as in 1440,2880"
        )
    wanted = [int(position) for position in _AT.value] or room or known[:1]
    piece_size = piece_size_of(config)
    num_pieces = max(2, min(_NOISE.value, data.num_examples) // piece_size)
    rows = []
    enable_compilation_cache(experiment.execution.compilation_cache_dir)
    with (
        Checkpoints(
            run_folder(_WORKDIR.value),
            keep=len(known),
            metric=task.metrics[0],
            config=dict(experiment.settings),
            defaults=experiment.defaults,
        ) as checkpoints,
        Trials(experiment, piece_size=piece_size, num_pieces=num_pieces) as trials,
    ):
        checked = []
        for position in wanted:
            _, notes = checkpoints.read(position, trials.engine.state)
            history = [Segment(*segment) for segment in notes["history"]]
            sizes = [history[-1].batch_size << k for k in range(_MULTIPLES.value)]
            whole = branch_length(length, sizes)
            for size in sizes:
                branch_points(plan, history, position, size, whole)
            checked.append((position, history, sizes, whole))
        for position, history, sizes, whole in checked:
            state, _ = checkpoints.read(position, trials.engine.state)
            losses: dict[int, list[float]] = {size: [] for size in sizes}
            for repeat in range(_REPEATS.value):
                for size in sizes:
                    points = branch_points(plan, history, position, size, whole, repeat * whole)
                    count = len(points) * 3 // 4
                    tail = trials.advance(trials.advance(state, points[:count]), points[count:])
                    losses[size].append(mean_loss(tail))
            rate = branch_points(plan, history, position, sizes[0], whole)[0].learning_rate
            noise = trials.noise(state, position)
            row = {
                "epoch": position / data.num_examples,
                "learning_rate": rate,
                "examples": whole,
            }
            rows.append(row | compared(losses, _TOLERANCE.value) | noise)
            print(f"checkpoint {position}: done", file=sys.stderr)
    return rows


def as_text(found: dict[str, Any]) -> str:
    """Returns a line for each checkpoint."""
    count = max(len(row["branches"]) for row in found["checkpoints"])
    multiples = ["loss", *(f"x {2**k}" for k in range(1, count))]
    cells = [["epoch", "batch", "rate", "B_simple", "branched", *multiples]]
    for row in found["checkpoints"]:
        noise = row.get("gradient_noise_scale")
        sizes = [branch["batch_size"] for branch in row["branches"]]
        branched = f"{row['critical_batch_size']}" if row["is_bounded"] else f">= {sizes[-1]}"
        first, *rest = row["branches"]
        if first["loss"] is None:
            branched = "unknown"
        cells.append(
            [
                f"{row['epoch']:.3g}",
                f"{sizes[0]}",
                f"{row['learning_rate']:.3g}",
                "unknown" if noise is None else f"{noise:.0f}",
                branched,
                _shown(first["loss"], ".4f"),
                *(_shown(branch["difference"], "+.4f") for branch in rest),
            ]
        )
    return text_table(cells)


def _shown(value: float | None, form: str) -> str:
    return "diverged" if value is None else format(value, form)


if __name__ == "__main__":
    launch(main)
