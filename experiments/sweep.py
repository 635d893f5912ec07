"""A grid of plans, seeds and optimizers, with a report at the end: resumable, cell by cell.

    python -m experiments.sweep --config=configs/cifar10.py --variants=hybrid --workdir=runs/sweep

Cells that are finished are skipped and an interrupted one is resumed, so the same command may be
started again at any time. A cell lies in WORKDIR/VARIANT/OPTIMIZER/SEED.
"""

import importlib.util
import json
import os
import pathlib

import jax
from absl import flags

from batchgrow.experiment import Experiment, NonFiniteLoss, Outcome
from batchgrow.report import find_runs, read_run, text, write_report
from batchgrow.run.signals import Preemption
from batchgrow.train import train
from experiments.launch import OVERRIDE, STATUS, experiment_of, launch, status_of

_CONFIG = flags.DEFINE_string("config", None, "configs/NAME.py, whose variants are run.")
_VARIANTS = flags.DEFINE_list("variants", [], "Which; each as after the colon of --config.")
_SIZE = flags.DEFINE_string("size", "", "Added to each variant after a comma, such as small.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many, from --first_seed on.")
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "The first seed.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", [], "Names; none for the config's own.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the cells and the report.")

PAPER = pathlib.Path(__file__).parent / "paper.json"


def main(_: list[str]) -> int:
    """Runs the cells that are missing, then writes and prints the report."""
    if not (_CONFIG.value and _VARIANTS.value and _WORKDIR.value):
        raise ValueError("--config, --variants and --workdir are needed; --help has an example")
    diverged = []
    with Preemption() as preemption:
        for experiment, folder in cells():
            try:
                outcome = train(experiment, folder, override_config=OVERRIDE.value)
                status = status_of(experiment, folder, outcome)
            except NonFiniteLoss as error:  # a finding: the report lists it
                diverged.append(f"{folder}: {error}")
                status = 0
            if status or preemption.requested():
                return status or STATUS[Outcome.PREEMPTED]
    if jax.process_index() != 0:
        return 0
    runs = [read_run(folder) for folder in find_runs([_WORKDIR.value])]
    out = os.path.join(_WORKDIR.value, "report")
    print(text(write_report(runs, out, paper_of(_CONFIG.value))))
    print("".join(f"\ndiverged: {line}" for line in diverged))
    print(f"report: {os.path.join(out, 'index.html')}")
    return 0


def cells() -> list[tuple[Experiment, str]]:
    """The experiment and the folder of every cell: seeds outermost, so that plans fill up alike.

    Raises:
      ValueError: for a config file, a variant, an optimizer or a field that is wrong.
    """
    path = pathlib.Path(str(_CONFIG.value))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"--config {str(path)!r}: no such Python file; try configs/NAME.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    grid = []
    for seed in range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value):
        for variant in _VARIANTS.value:
            for optimizer in _OPTIMIZERS.value or [None]:
                config = module.get_config(f"{variant},{_SIZE.value}".rstrip(","))
                config.seed = seed
                config.optimizer.name = optimizer or config.optimizer.name
                cell = (config.variant, config.optimizer.name, str(seed))
                for part, name in zip(("variant", "optimizer.name"), cell, strict=False):
                    if name in ("", ".", "..") or os.sep in name:
                        raise ValueError(
                            f"{part} {name!r} cannot name a folder of a cell; use another name, "
                            f"without {os.sep}"
                        )
                folder = os.path.join(_WORKDIR.value, *cell)
                grid.append((experiment_of(config.lock()), folder))
    return grid


def paper_of(config: str) -> dict[str, dict]:
    """The paper's numbers for this config's variants, from experiments/paper.json."""
    numbers = json.loads(PAPER.read_text(encoding="utf-8"))
    return numbers.get(pathlib.Path(config).stem, {})


if __name__ == "__main__":
    launch(main)
