"""Train any config, resuming from the run folder if it holds a checkpoint.

python -m experiments.train --config=configs/digits.py:hybrid --workdir=runs/hybrid
"""

from absl import flags

from batchgrow.train import train
from experiments import cli
from experiments.launch import OVERRIDE, experiment_of, launch, status_of

_CONFIG = cli.config_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "The run folder.")


def main(_: list[str]) -> int:
    """Trains; returns the exit status."""
    experiment = experiment_of(_CONFIG.value)
    outcome = train(experiment, _WORKDIR.value, override_config=OVERRIDE.value)
    return status_of(experiment, _WORKDIR.value, outcome)


if __name__ == "__main__":
    launch(main)
