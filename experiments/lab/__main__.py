"""An experiment of the laboratory: a claim about batch sizes, measured and recorded.

    python -m experiments.lab fixed_rate --workdir=runs/lab
    python -m experiments.lab --page      # docs/laboratory.md from the recorded results

Without a name it lists the experiments: what is claimed, and what was found. Runs that are finished
are skipped and an interrupted one is resumed, so the same command may be started again at any time.
The runs of an experiment are in WORKDIR/NAME; its result and its figure are NAME.json and NAME.png
in WORKDIR/results. With --record both are also written to experiments/results/lab and
docs/laboratory.
"""

import os
import pathlib
import shutil
from dataclasses import replace

import jax
from absl import flags
from etils import epath

from batchgrow.experiment import Experiment
from batchgrow.run import environment
from batchgrow.text_table import text_table
from experiments.lab import EXPERIMENTS, page, study
from experiments.launch import experiment_of, launch, obey_data_flags, run_cells

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the runs and the result.")
_SEEDS = flags.DEFINE_integer("seeds", None, "How many seeds; by default the experiment's.", 1)
_RECORD = flags.DEFINE_bool("record", False, "Also write the result into this repository.")
_PAGE = flags.DEFINE_bool("page", False, "Only write docs/laboratory.md from recorded results.")

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments/results/lab"


def main(names: list[str]) -> int:
    """Runs what is missing of the experiments, then writes and prints their results."""
    if _PAGE.value:
        seeds = {name: study.find_study(name).seeds for name in EXPERIMENTS}
        (ROOT / "docs/laboratory.md").write_text(page.page(RESULTS, seeds))
        return 0
    if not names:
        claims = {name: study.find_study(name).claim for name in EXPERIMENTS}
        print(page.listing(claims, RESULTS))
        return 0
    if not _WORKDIR.value:
        raise ValueError("--workdir is needed; --help has an example")
    studies = {name: study.find_study(name) for name in names}
    for name, found in studies.items():
        status = _run(name, found)
        if status:
            return status
    return 0


def _run(name: str, found: study.Study) -> int:
    obey_data_flags(found.config())  # Functions of the arms read the data that it names.
    folder = epath.Path(_WORKDIR.value)
    grid = list(study.cells(found, str(folder / name), _SEEDS.value))
    for starts in (True, False):  # The runs that others start from come first.
        part = [cell for cell in grid if starts == (cell.arm.start_from is None)]
        status = run_cells([(_experiment(cell, str(folder)), cell.folder) for cell in part])
        if status:
            return status
    if jax.process_index() != 0:
        return 0
    result = study.record(name, found, study.trials_of(found, grid), environment.command())
    study.write(result, folder / "results")
    print(f"{result['claim']}\n\n{text_table(study.table(result))}\n\n{result['finding']}")
    if _RECORD.value:
        for ending, place in {"json": RESULTS, "png": ROOT / "docs/laboratory"}.items():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"results/{name}.{ending}", place)
    return 0


def _experiment(cell: study.Cell, workdir: str) -> Experiment:
    """The experiment, named for its cell."""
    return replace(experiment_of(cell.config), name=os.path.relpath(cell.folder, workdir))


if __name__ == "__main__":
    launch(main, positional=True)
