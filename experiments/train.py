"""Train any config, resuming from the run folder if it holds a checkpoint.

python -m experiments.train --config=configs/digits.py:hybrid --workdir=runs/hybrid
"""

from absl import flags

from experiments import cli
from experiments.launch import launch, run

_CONFIG = cli.config_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "The run folder.")


def main() -> int:
    """Trains; returns the exit status."""
    return run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    launch(main)
