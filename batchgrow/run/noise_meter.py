"""The averages of the measured gradient noise of a run, which checkpoints contain."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from batchgrow.experiment import Experiment
from batchgrow.plan.noise import NOISE_SCALE, NoiseAverage, estimate

PRECONDITIONED = "preconditioned_noise_scale"


class NoiseMeter:
    """Averages of the gradient noise.

    Args:
      experiment: says how the noise is measured.
    """

    def __init__(self, experiment: Experiment):
        self._probe = experiment.noise
        self._num_examples = experiment.train_data.num_examples
        self._averages: dict[str, NoiseAverage] = {}

    def add(self, norms: Mapping[str, float], num_intervals: int = 1) -> None:
        """Adds a measurement.

        Args:
          norms: what `Engine.measure_noise` returns.
          num_intervals: the intervals between two probes that have passed since the last one.
        """
        probe = self._probe
        assert probe is not None
        batch_size = probe.piece_size * probe.num_pieces
        for key, piece in norms.items():
            if key.startswith("piece"):
                suffix = key.removeprefix("piece")
                pair = piece, norms[f"batch{suffix}"]
                estimates = estimate(*pair, probe.piece_size, batch_size, self._num_examples)
                name = column(suffix)
                average = self._averages.get(name, NoiseAverage(probe.horizon))
                self._averages[name] = average.add(*estimates, num_intervals * probe.every)

    def columns(self) -> dict[str, float]:
        """Returns the known noise scales in examples, by column of a row."""
        scales = {name: average.noise_scale for name, average in self._averages.items()}
        return {name: scale for name, scale in scales.items() if scale is not None}

    def notes(self) -> dict[str, Any]:
        """The averages as JSON."""
        return {name: dataclasses.asdict(average) for name, average in self._averages.items()}

    def restore(self, notes: Mapping[str, Mapping[str, float]]) -> None:
        """Continues from the averages of `notes`."""
        self._averages = {name: NoiseAverage(**fields) for name, fields in notes.items()}


def column(suffix: str) -> str:
    """Returns the column of a row for norms of this name (see `noise.measure`)."""
    return PRECONDITIONED if suffix == "_preconditioned" else NOISE_SCALE + suffix
