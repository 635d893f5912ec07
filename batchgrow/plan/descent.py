"""Where the learning rate of a recipe decreases: jumps, peaks, and the highest rate to come."""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from batchgrow.plan.recipe import Recipe

NUM_SAMPLES = 1024  # In a run; a bump narrower than the distance of two samples may be missed.
SAMPLES_PER_EPOCH = 16  # Used if it gives more samples, for curves that repeat every epoch.
MAX_SAMPLES = 100_000
SMALLEST_JUMP = 0.01  # Relative. A smaller change between adjacent examples counts as smooth.
NEGLIGIBLE = 1e-6  # Relative to the maximum. float32 curves reach 0 in steps of this size.


class Descent(NamedTuple):
    """How the learning rate of a recipe decreases over the run.

    Attributes:
      positions: sampled numbers of examples seen, increasing; int64, shape (n,). They include both
        sides of each jump and the peaks.
      ceilings: the highest learning rate from each position to the end; float64, shape (n,).
      jumps: the first example of each new value.
    """

    positions: np.ndarray
    ceilings: np.ndarray
    jumps: tuple[int, ...]

    def ceiling(self, position: int) -> float:
        """Returns the highest learning rate from `position`, one of `positions`, to the end."""
        return float(self.ceilings[np.searchsorted(self.positions, position)])


def find_descent(recipe: Recipe) -> Descent:
    """Samples the learning rate of the recipe and finds its jumps and peaks.

    Raises:
      ValueError: if the learning rate is 0 at every sample, negative or not finite.
    """
    last = recipe.end_examples - 1
    wanted = max(NUM_SAMPLES, min(MAX_SAMPLES, round(SAMPLES_PER_EPOCH * recipe.num_epochs)))
    num_steps = max(1, min(wanted, last))
    positions = np.unique(last * np.arange(num_steps + 1) // num_steps)
    rates = recipe.learning_rates_at(positions)
    jumps = _known_jumps(recipe)
    if jumps is None:
        jumps = _search_jumps(recipe, positions, rates)
    positions, rates = _add(recipe, positions, rates, np.concatenate([jumps - 1, jumps]))
    positions, rates = _add(recipe, positions, rates, _search_peaks(recipe, positions, rates))
    ceilings = np.maximum.accumulate(rates[::-1])[::-1]
    if ceilings[0] == 0:
        raise ValueError("learning_rate is 0 at every epoch: the curve must be above 0 somewhere")
    return Descent(positions, ceilings, tuple(jumps.tolist()))


def _add(
    recipe: Recipe, positions: np.ndarray, rates: np.ndarray, extra: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples with those at the positions `extra`, in order."""
    positions, index = np.unique(np.concatenate([positions, extra]), return_index=True)
    return positions, np.concatenate([rates, recipe.learning_rates_at(extra)])[index]


def _known_jumps(recipe: Recipe) -> np.ndarray | None:
    """Returns the first example after each boundary of the curve, or None if it has no list."""
    boundaries = getattr(recipe.curve, "boundaries_epochs", None)
    if boundaries is None:
        return None
    examples = range(recipe.end_examples)
    found = {bisect_left(examples, e, key=lambda n: n / recipe.num_examples) for e in boundaries}
    return np.array(sorted(found - {0, recipe.end_examples}), np.int64)


def _search_jumps(recipe: Recipe, positions: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Finds jumps by bisection of every interval over which the learning rate changes."""
    negligible = NEGLIGIBLE * rates.max()
    low, high, at_low, at_high = positions[:-1], positions[1:], rates[:-1], rates[1:]
    jumps = []
    while low.size:
        smooth = np.maximum(SMALLEST_JUMP * np.maximum(at_low, at_high), negligible)
        changes = np.abs(at_high - at_low) > smooth
        adjacent = high - low == 1
        jumps += high[changes & adjacent].tolist()
        low, high, at_low, at_high = (x[changes & ~adjacent] for x in (low, high, at_low, at_high))
        middle = (low + high) // 2
        at_middle = recipe.learning_rates_at(middle)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        at_low = np.concatenate([at_low, at_middle])
        at_high = np.concatenate([at_middle, at_high])
    # In a very short run a smooth curve changes this much too, but then its next change is similar.
    around = np.sort(jumps).astype(np.int64)[:, None] + np.arange(-2, 2)
    inside = around.clip(0, recipe.end_examples - 1)
    at = recipe.learning_rates_at(inside.ravel()).reshape(inside.shape)
    before, change, after = np.abs(np.diff(at)).T
    return around[change > 4 * np.maximum(before, after), 2]


def _search_peaks(recipe: Recipe, positions: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Finds the local maxima between samples, such as the end of a warm-up."""
    left, right = np.append(rates[0], rates[:-1]), np.append(rates[1:], rates[-1])
    highest = (rates >= left) & (rates >= right) & ((rates > left) | (rates > right))
    peaks = np.flatnonzero(highest)
    low = positions[np.maximum(peaks - 1, 0)]
    high = positions[np.minimum(peaks + 1, len(positions) - 1)]
    rows = np.arange(len(peaks))
    while True:
        grid = low[:, None] + (high - low)[:, None] * np.arange(17) // 16
        best = recipe.learning_rates_at(grid.ravel()).reshape(grid.shape).argmax(axis=1)
        if (high - low).max(initial=0) <= 16:  # The grid holds every example.
            return grid[rows, best]
        low, high = grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, 16)]
