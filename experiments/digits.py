"""Train three plans for one recipe on 8x8 digits and write a report.

python -m experiments.digits
"""

import os

from absl import flags

from configs import digits
from experiments.launch import experiment_of, launch, run_cells
from experiments.result_files import report_on

_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Folder for the runs and the report.")


def main(_: list[str]) -> int:
    """Trains every variant, then writes and prints the report."""
    workdir = _WORKDIR.value
    experiments = [experiment_of(digits.get_config(name)) for name in digits.VARIANTS]
    folders = [os.path.join(workdir, name) if workdir else "" for name in digits.VARIANTS]
    status = run_cells(zip(experiments, folders, strict=True))
    if not status:
        report_on(folders, workdir)
    return status


if __name__ == "__main__":
    launch(main)
