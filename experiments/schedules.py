"""Compare schedules of the batch size for one recipe and the same number of examples.

    python -m experiments.schedules --config=configs/shakespeare.py --workdir=runs/schedules \\
        --seeds=3 --multiple=8

The schedules, which are called arms; B is the recipe's batch size and k is --multiple:

    recipe         the config's recipe as it is
    smith          the batch grows up to k B where the rate falls; rate ~ batch
    seesaw         the same batches; rate ~ sqrt(batch) (arXiv 2510.14717)
    seesaw_betas   seesaw, where b1, b2 keep their half-life in examples (arXiv 2507.07101)
    large_sqrt     k B from the start, rate ~ sqrt(batch)
    large_linear   k B from the start, rate ~ batch
    ramp           B, 2 B, ... k B in equal parts of the first half; the recipe's own rate
    late_switch    B, then k B from --switch of the run on; the recipe's own rate
    follow         the batch grows up to k B as the noise does; rate by the optimizer

No arm is tuned: the learning rates are those of the recipe. The run of an arm and a seed is in
WORKDIR/ARM/SEED. Start the command again to continue: finished runs are skipped and an interrupted
one is resumed. At the end the table is printed and written to WORKDIR/schedules.json, beside the
report. With --seconds_per_example the table also has the predicted time of each arm, as
experiments.plan computes it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import jax
from absl import flags
from etils import epath

from batchgrow.config import ConfigDict
from batchgrow.cost import num_parameters
from batchgrow.experiment import Experiment
from batchgrow.plan import FixedPlan
from batchgrow.plan.time_to_train import Hardware, predict
from batchgrow.report import find_runs, group_by_plan, read_run, write_report
from experiments import cli
from experiments.arms import ARMS, arm_of, as_text, table
from experiments.launch import check_grid, experiment_of, launch, run_cells
from experiments.result_files import some_logged

_CONFIG = cli.config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs and the table.")
_ARMS = flags.DEFINE_list("arms", list(ARMS), f"Schedules to train, of: {', '.join(ARMS)}.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds, from 0 on.", lower_bound=1)
_MULTIPLE = flags.DEFINE_integer("multiple", 8, "k, a power of 2: the largest batch is k B.")
_SWITCH = flags.DEFINE_float("switch", 0.75, "Position of the late switch, as a share of the run.")
_SECONDS_PER_EXAMPLE = flags.DEFINE_float(
    "seconds_per_example", None, "Measured seconds of an example on one device."
)
_SECONDS_PER_UPDATE = flags.DEFINE_float(
    "seconds_per_update", 0.0, "Additional seconds of each update, whatever its batch size."
)
_NUM_DEVICES = flags.DEFINE_integer(
    "plan_devices", 8, "Number of devices for which the time is predicted.", lower_bound=1
)


def main(_: list[str]) -> int:
    """Runs the cells that are missing, then prints and writes the table."""
    if not _WORKDIR.value:
        raise ValueError("--workdir is missing")
    grid = list(cells(_CONFIG.value))
    times = {arm: _predicted(experiment) for arm, experiment, _ in grid}
    runs_to_make = [(experiment, folder) for _, experiment, folder in grid]
    check_grid(_WORKDIR.value, runs_to_make)
    status = run_cells(runs_to_make)
    if status or jax.process_index() != 0:
        return status
    runs = [read_run(folder) for folder in find_runs([_WORKDIR.value])]
    rows = table(group_by_plan(runs), times)
    path = epath.Path(_WORKDIR.value) / "schedules.json"
    path.write_text(json.dumps(rows, indent=2))
    print(f"{as_text(rows)}\n\n{path}")
    if some_logged(runs):
        write_report(runs, os.path.join(_WORKDIR.value, "report"))
    return 0


def cells(config: ConfigDict) -> Iterator[tuple[str, Experiment, str]]:
    """Yields the arm, the experiment, named for its cell, and the folder of every cell.

    Seeds are outermost.

    Raises:
      ValueError: for an unknown arm or a wrong flag.
    """
    for seed in range(_SEEDS.value):
        for arm in _ARMS.value:
            cell = arm_of(config, arm, _MULTIPLE.value, _SWITCH.value)
            cell.seed = seed
            folder = os.path.join(_WORKDIR.value or "", arm, str(seed))
            experiment = experiment_of(cell.lock())
            yield arm, replace(experiment, name=f"{experiment.name}:{arm}/{seed}"), folder


def _predicted(experiment: Experiment) -> float | None:
    """Seconds of the plan on the described machine; None without a description."""
    seconds, plan = _SECONDS_PER_EXAMPLE.value, experiment.plan
    if seconds is None or not isinstance(plan, FixedPlan):
        return None
    hardware = Hardware(seconds, _NUM_DEVICES.value, seconds_per_update=_SECONDS_PER_UPDATE.value)
    parameters = num_parameters(experiment.task, experiment.train_data.example)
    return predict(plan, parameters, hardware)["seconds"]


if __name__ == "__main__":
    launch(main)
