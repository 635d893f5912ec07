"""The slope of a measured quantity, with its interval."""

from collections.abc import Sequence

import numpy as np
from scipy import special

WARM_UP = 0.2
BLOCKS = 20


def fit(values: Sequence[float]) -> dict[str, float]:
    """The straight line through values at 0, 1, 2, ...

    Returns:
      The number of values, the first and the last after the warm-up, and the slope with the ends of
      its 95 % interval.
    """
    kept = np.array(values[int(WARM_UP * len(values)) :], float)
    blocks = np.array_split(np.arange(len(kept)), min(BLOCKS, len(kept)))
    x, y = ([part[block].mean() for block in blocks] for part in (np.arange(len(kept)), kept))
    x, y = np.array(x) - np.mean(x), np.array(y)
    slope = float(x @ y / (x @ x))
    rest, freedom = y - y.mean() - slope * x, len(blocks) - 2
    half = float(special.stdtrit(freedom, 0.975) * np.sqrt(rest @ rest / freedom / (x @ x)))
    return {
        "samples": len(values),
        "first": float(kept[0]),
        "last": float(kept[-1]),
        "slope": slope,
        "low": slope - half,
        "high": slope + half,
    }
