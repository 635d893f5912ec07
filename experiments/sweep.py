"""Train a grid of variants, values of fields and seeds, and write a report.

    python -m experiments.sweep --config=configs/mnist.py --workdir=runs/sweep --seeds=3 \\
        --config.recipe.learning_rate=0.05,0.1,0.2 --config.recipe.batch_size=32,128 \\
        --x=recipe.learning_rate --y=test_loss

Fields with several values, separated by commas, span the grid. A field with one value is set in
every run. Write a value that contains commas, such as a tuple, in parentheses:
--config.recipe.boundaries_epochs=(3,6),(4,8). All runs are checked before the first one starts.
Start the same command again to continue: finished runs are skipped and an interrupted one is
resumed. A run is in WORKDIR/VARIANT/FIELD=VALUE/.../SEED.

The report has a figure of --y, a column of the rows, against the field --x: the mean over seeds,
with a band of its 95 % confidence interval and a line for each value of the other fields.
"""

import json
import os
import pathlib
from dataclasses import replace

from absl import flags

from batchgrow.experiment import Experiment
from batchgrow.report import swept
from experiments import grid
from experiments.launch import check_grid, experiment_of, launch, run_cells
from experiments.result_files import report_on

_CONFIG = flags.DEFINE_string("config", None, "configs/NAME.py:VARIANT", required=True)
_VARIANTS = flags.DEFINE_list("variants", [], "Variants: what follows the colon of --config.")
_SIZE = flags.DEFINE_string("size", "", "Text added to each variant after a comma, such as small.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 5, "Number of seeds, from 0 on; or give --config.seed=3,4.", 1
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the runs and the report.")
_X = flags.DEFINE_string(
    "x", None, "Field on the horizontal axis of the figure; by default one that varies."
)
_Y = flags.DEFINE_string(
    "y", None, "Column that the figure shows; by default the first test metric."
)

PAPER = pathlib.Path(__file__).parent / "paper.json"


def main(arguments: list[str]) -> int:
    """Runs the cells that are missing, then writes and prints the report."""
    if not _WORKDIR.value:
        raise ValueError("--workdir is needed; --help has an example")
    grid_cells = cells(arguments)
    experiments = [experiment for experiment, _ in grid_cells]
    metrics = dict.fromkeys(m.name for one in experiments for m in one.task.metrics)
    columns = [f"{part}_{name}" for part in ("test", "train") for name in metrics]
    swept.check_axes([one.settings for one in experiments], columns, _X.value, _Y.value)
    check_grid(_WORKDIR.value, grid_cells)
    status = run_cells(grid_cells)
    if not status:
        workdir = _WORKDIR.value
        report_on([workdir], workdir, paper_of(_file()), x=_X.value, y=_Y.value)
    return status


def cells(arguments: list[str]) -> list[tuple[Experiment, str]]:
    """The experiment, named for its cell, and the folder of every cell.

    Args:
      arguments: `--config.FIELD=VALUES`.

    Raises:
      ValueError: for a config file, a variant, a field or a value that is wrong.
    """
    variants = _VARIANTS.value or [_CONFIG.value.partition(":")[2]]
    chosen = [f"{variant},{_SIZE.value}".strip(",") for variant in variants]
    files = [f"{_file()}:{variant}" if variant else _file() for variant in chosen]
    seeds = range(_SEEDS.value)
    if any(argument.lstrip("-").startswith("config.seed=") for argument in arguments):
        if flags.FLAGS["seeds"].present:
            raise ValueError("--seeds and --config.seed say the same; give one of them")
        seeds = None
    return [
        (
            replace(experiment_of(cell.config), name=f"{cell.config.name}:{cell.folder}"),
            os.path.join(_WORKDIR.value, cell.folder),
        )
        for cell in grid.cells(files, arguments, seeds)
    ]


def _file() -> str:
    """The path of --config, without a variant."""
    return _CONFIG.value.partition(":")[0]


def paper_of(config: str) -> dict[str, dict]:
    """The paper's numbers for this config's variants, from experiments/paper.json."""
    numbers = json.loads(PAPER.read_text(encoding="utf-8"))
    return numbers.get(pathlib.Path(config).stem, {})


if __name__ == "__main__":
    launch(main, fields=True)
