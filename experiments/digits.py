"""Train three plans for one recipe on 8x8 digits and write a report.

python -m experiments.digits
"""

import os

import jax
from absl import flags

from batchgrow.experiment import Outcome
from batchgrow.report import read_run, text, write_report
from batchgrow.run.signals import Preemption
from configs import digits
from experiments.launch import STATUS, launch, train_config

_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Folder for the runs and the report.")


def main(_: list[str]) -> int:
    """Trains every variant, then writes and prints the report."""
    folders = []
    with Preemption() as preemption:
        for variant in digits.VARIANTS:
            workdir = os.path.join(_WORKDIR.value, variant) if _WORKDIR.value else ""
            status = train_config(digits.get_config(variant), workdir)
            if status or preemption.requested():
                return status or STATUS[Outcome.PREEMPTED]
            folders.append(workdir)
    if jax.process_index() != 0:
        return 0
    out = os.path.join(_WORKDIR.value, "report")
    print(text(write_report([read_run(folder) for folder in folders], out)))
    print(f"\nreport: {os.path.join(out, 'index.html')}")
    return 0


if __name__ == "__main__":
    launch(main)
