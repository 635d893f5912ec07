"""A grid of plans, seeds and optimizers, with a report at the end: resumable, cell by cell.

    python -m experiments.sweep --config=configs/cifar10.py --variants=hybrid --workdir=runs/sweep

Cells that are finished are skipped and an interrupted one is resumed, so the same command may be
started again at any time. A cell is in WORKDIR/VARIANT/OPTIMIZER/SEED. --config.FIELD=VALUE sets a
field of every cell. Without --variants the grid has the one variant of --config.
"""

import json
import os
import pathlib
import runpy

import jax
from absl import flags
from ml_collections import config_flags

from batchgrow.experiment import Experiment
from batchgrow.report import find_runs, read_run, text, write_report
from experiments import cli
from experiments.launch import experiment_of, launch, run_cells

_CONFIG = cli.config_flag()
_VARIANTS = flags.DEFINE_list("variants", [], "Variants, each as after the colon of --config.")
_SIZE = flags.DEFINE_string("size", "", "Added to each variant after a comma, such as small.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many, from --first_seed on.")
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "The first seed.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", [], "Names; none for the config's own.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the cells and the report.")

PAPER = pathlib.Path(__file__).parent / "paper.json"


def main(_: list[str]) -> int:
    """Runs the cells that are missing, then writes and prints the report."""
    if not _WORKDIR.value:
        raise ValueError("--workdir is needed; --help has an example")
    status = run_cells(cells())
    if status or jax.process_index() != 0:
        return status
    runs = [read_run(folder) for folder in find_runs([_WORKDIR.value])]
    out = os.path.join(_WORKDIR.value, "report")
    print(text(write_report(runs, out, paper_of(_config_file()))))
    print(f"report: {os.path.join(out, 'index.html')}")
    return 0


def cells() -> list[tuple[Experiment, str]]:
    """The experiment and the folder of every cell: seeds outermost, so that plans fill up alike.

    Raises:
      ValueError: for a config file, a variant, an optimizer or a field that is wrong.
    """
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    get_config = runpy.run_path(_config_file())["get_config"]
    grid = []
    for seed in range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value):
        for variant in _VARIANTS.value or [_CONFIG.value.variant]:
            for optimizer in _OPTIMIZERS.value or [None]:
                text = f"{variant},{_SIZE.value}".rstrip(",")
                try:
                    config = get_config(text) if text else get_config()
                except TypeError as error:
                    raise ValueError(
                        f"--variants: get_config of {_config_file()} does not take {text!r} "
                        f"({error}); give it an argument `variant`"
                    ) from error
                with config.ignore_type():
                    config.update_from_flattened_dict(overrides)
                config.seed = seed
                config.optimizer.name = optimizer or config.optimizer.name
                cell = (config.variant, config.optimizer.name, str(seed))
                for name in cell:
                    if name in (".", "..") or os.sep in name:
                        raise ValueError(
                            f"--variants, --optimizers: {name!r} cannot name the folder of a cell; "
                            f"use a name without {os.sep}"
                        )
                folder = os.path.join(_WORKDIR.value, *filter(None, cell))
                grid.append((experiment_of(config.lock()), folder))
    return grid


def _config_file() -> str:
    """The path of --config, without a variant."""
    return config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]


def paper_of(config: str) -> dict[str, dict]:
    """The paper's numbers for this config's variants, from experiments/paper.json."""
    numbers = json.loads(PAPER.read_text(encoding="utf-8"))
    return numbers.get(pathlib.Path(config).stem, {})


if __name__ == "__main__":
    launch(main)
