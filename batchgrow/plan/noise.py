"""The gradient noise scale: how large a batch may be before it wastes examples.

The gradient of a batch of B examples is the full gradient g plus noise of covariance Sigma / B. The
simple noise scale (McCandlish et al. 2018, arXiv 1812.06162, Sec. 2.2) is

    B_simple = (trace of Sigma) / (squared norm of g)

Batches far below it average little signal, and batches far above it average almost no noise. Both
parts are estimated from K pieces of b examples with gradients g_k (their Appendix A). With
B = K b, s the mean of the squared norms of the g_k, and G the squared norm of their mean,

    trace of Sigma = (s - G) / (1/b - 1/B)
    squared norm of g = (B G - b s) / (B - b)

are unbiased, but their ratio is not. Each is therefore averaged over the run, and the ratio is that
of the averages. No JAX here: the norms may come from any framework.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NOISE_SCALE = "gradient_noise_scale"  # the column of rows that holds B_simple


def estimate(
    piece: Any, batch: Any, piece_size: int, batch_size: int, num_examples: int | None = None
) -> tuple[Any, Any]:
    """Returns unbiased estimates from one batch: squared norm of g, and trace of Sigma.

    Args:
      piece: s, the mean squared norm of the gradients of the pieces.
      batch: G, the squared norm of their mean.
      piece_size: b, the examples of a piece.
      batch_size: B, the examples of all pieces.
      num_examples: N, if the examples were drawn without replacement from a training set of this
        size. Then g is the gradient over the whole set: a batch deviates from it by
        (1/B - 1/N) Sigma, so the squared norm is larger by (trace of Sigma) / N.

    Raises:
      ValueError: if there is only one piece.

    >>> estimate(piece=3.0, batch=2.0, piece_size=1, batch_size=2)
    (1.0, 2.0)
    """
    if batch_size <= piece_size:
        raise ValueError(
            f"a batch of {batch_size} examples in pieces of {piece_size} has one piece; the noise "
            "needs two or more"
        )
    trace = (piece - batch) / (1 / piece_size - 1 / batch_size)
    squared_norm = (batch_size * batch - piece_size * piece) / (batch_size - piece_size)
    if num_examples is not None:
        squared_norm = squared_norm + trace / num_examples
    return squared_norm, trace


@dataclass(frozen=True)
class NoiseAverage:
    """Debiased exponential averages of both estimates, by examples seen and not by updates.

    Attributes:
      horizon: the time constant of the averages, in examples.
      squared_norm: the weighted sum of the estimates of the squared norm of g.
      trace: the weighted sum of the estimates of the trace of Sigma.
      weight: the sum of the weights, which debiases both.
    """

    horizon: float
    squared_norm: float = 0.0
    trace: float = 0.0
    weight: float = 0.0

    def add(self, squared_norm: float, trace: float, num_examples: float) -> "NoiseAverage":
        """Returns the averages with another estimate, `num_examples` after the last one."""
        decay = math.exp(-num_examples / self.horizon)
        return replace(
            self,
            squared_norm=decay * self.squared_norm + (1 - decay) * squared_norm,
            trace=decay * self.trace + (1 - decay) * trace,
            weight=decay * self.weight + (1 - decay),
        )

    @property
    def noise_scale(self) -> float | None:
        """B_simple, in examples; None while it is unknown.

        It is unknown before the first estimate, and while an average is not positive because the
        estimates are too few.
        """
        if not (self.squared_norm > 0 and self.trace > 0):
            return None
        return self.trace / self.squared_norm


def fit_steps(batch_sizes: Sequence[float], steps: Sequence[float]) -> tuple[float, float]:
    """Returns (S_min, B_crit) of steps = S_min (1 + B_crit / B) that fit best, by relative error.

    The steps to a target loss have this form if each batch size has its best learning rate
    (McCandlish et al. 2018, Eq. 2.7 and Sec. 2.3). B_crit is what B_simple estimates: with this
    batch a run takes twice the fewest steps and twice the fewest examples.

    >>> S_min, B_crit = fit_steps([10, 100, 1000], [1100, 200, 110])
    >>> round(S_min), round(B_crit)
    (100, 100)

    Raises:
      ValueError: for fewer than two batch sizes, or steps that do not fall as the batch grows.
    """
    if len(set(batch_sizes)) < 2:
        raise ValueError(f"batch sizes {list(batch_sizes)}: two different ones are needed")
    inverse, counts = 1 / np.asarray(batch_sizes, float), np.asarray(steps, float)
    rows = np.stack([1 / counts, inverse / counts], axis=1)
    (least, slope), *_ = np.linalg.lstsq(rows, np.ones(len(counts)), rcond=None)
    if not (least > 0 and slope > 0):
        raise ValueError(
            f"steps {list(steps)} at batch sizes {list(batch_sizes)} are not of the form "
            "S (1 + C / B); take a wider range of batch sizes"
        )
    return float(least), float(slope / least)
