"""Noisy observations of one signal by many sources, one at a time (Binkowski et al. 2018).

The facts are those of the authors' program (github.com/mbinkowski/nntimeseries, nnts/artificial.py
and the grid in nnts/models/SOCNN.py):

- The signal is an autoregression of order 10 whose coefficients are uniform random numbers scaled
  to the sum 0.999, with Gaussian steps; it is then standardised.
- The time between two observations is 1 + ceil(t), with t exponential of mean 2.
- Source i observes with a probability proportional to 1.1^i. Its noise has the scale 2^-(i // 8).
  Of four sources, one adds + or - the scale, one multiplies by 1 + or - the scale (each with a
  probability of plus that is drawn once for a source), one adds Gaussian noise, and one multiplies
  by 1 + Gaussian noise.
- A row has the observation, the duration since the row before, and an indicator for each source.
  The target is the signal itself at the next row. 60 rows predict; the last 20 % of 10,000 are the
  test set.

What could not be verified: which column the authors' program takes as x^I here (we take the
observation), and the random numbers. The data are drawn once: seeds of runs do not change them.
"""

from functools import cache

import numpy as np

from batchgrow.data.series import SeriesDataset, divided

NUM_ROWS, TEST_SHARE, CONTEXT, ORDER = 10_000, 0.2, 60, 10
NUM_TRAIN = round(NUM_ROWS * (1 - TEST_SHARE)) - CONTEXT


def sources16(split: str) -> SeriesDataset:
    """16 sources: x float32 `(60, 18)`, y float32 `(1,)`."""
    return _split(16)[split]


def sources64(split: str) -> SeriesDataset:
    """64 sources: x float32 `(60, 66)`, y float32 `(1,)`."""
    return _split(64)[split]


@cache
def _split(num_sources: int) -> dict[str, SeriesDataset]:
    inputs, signal = observations(num_sources, NUM_ROWS, np.random.default_rng(num_sources))
    border = CONTEXT + NUM_TRAIN
    return divided(inputs, signal[:, None], CONTEXT, border, looks_back=True)


def observations(
    num_sources: int, num_rows: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs `(rows, 2 + sources)`, not standardised, and the signal `(rows,)`."""
    durations = 1 + np.ceil(rng.exponential(2.0, num_rows)).astype(int)
    signal = autoregression(durations.sum() + 1, rng)[durations.cumsum()]
    weights = 1.1 ** np.arange(num_sources)
    source = rng.choice(num_sources, num_rows, p=weights / weights.sum())
    scale = 2.0 ** -(np.arange(num_sources) // 8)[source]
    plus = rng.random(num_rows) < rng.random(num_sources)[source]
    noise = scale * np.where(source % 4 < 2, np.where(plus, 1.0, -1.0), rng.normal(size=num_rows))
    observed = np.where(source % 2 == 0, signal + noise, signal * (1 + noise))
    indicators = np.eye(num_sources)[source]
    return np.column_stack([observed, durations, indicators]), signal


def autoregression(length: int, rng: np.random.Generator) -> np.ndarray:
    """The signal at every time, standardised."""
    coefficients = rng.random(ORDER)
    coefficients *= 0.999 / coefficients.sum()
    steps = rng.normal(size=length)
    signal = steps.copy()
    for time in range(ORDER, length):
        signal[time] += coefficients @ signal[time - ORDER : time]
    return (signal - signal.mean()) / signal.std()
