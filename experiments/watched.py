"""Training for a measurement, which a signal ends with nothing measured. No flags."""

import os

from batchgrow.experiment import Experiment
from batchgrow.run.signals import Preemption
from batchgrow.train import Watch, train


def train_watched(experiment: Experiment, workdir: str, watch: Watch) -> None:
    """Trains until the end of the plan, or until `watch` has seen enough.

    Args:
      experiment: what is trained, in one process.
      workdir: the run folder.
      watch: as of `train`.

    Raises:
      SystemExit: with status 75 after SIGTERM or Ctrl-C. `train` ends as after enough, so that a
        part of a measurement would pass for the whole.
    """
    with Preemption() as preemption:
        train(experiment, workdir, watch=watch)
    if preemption.requested():
        raise SystemExit(os.EX_TEMPFAIL)
