"""Windows of a series: some rows as the input, the next row as the target."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchgrow.data.datasets import ArrayBacked


class SeriesDataset(ArrayBacked):
    """Example i has x = inputs[i : i + context] and y = targets[i + context].

    Args:
      inputs: float32 `(rows, channels)`, in the order of time.
      targets: float32 `(rows, outputs)`, of the same rows. Those of the first `context` rows are
        not used.
      context: rows of a window.
      facts: see `Dataset`.

    Raises:
      ValueError: if the series is not longer than a window, or `context` is below 1.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        context: int,
        facts: Mapping[str, Any] | None = None,
    ):
        if context < 1 or len(inputs) <= context:
            raise ValueError(
                f"data.context {context} must be 1 or more and less than the rows of the series, "
                f"{len(inputs)}"
            )
        self.arrays = {"inputs": inputs, "targets": targets}
        self.context = context
        self.num_examples = len(inputs) - context
        channels, outputs = inputs.shape[1], targets.shape[1]
        sizes = {"in_features": channels, "in_shape": (context, channels), "outputs": outputs}
        self.facts = {**sizes, **(facts or {})}

    def take(self, arrays: dict[str, Any], indices: Any) -> dict[str, Any]:
        """Returns {"x": `(*indices.shape, context, channels)`, "y": `(*indices.shape, outputs)`}.

        Args:
          arrays: `self.arrays`, of NumPy or on a device.
          indices: integers below `num_examples`, of NumPy or on a device.
        """
        offsets = np.arange(self.context, dtype=np.int32).reshape((1,) * indices.ndim + (-1,))
        rows = indices[..., None] + offsets
        return {"x": arrays["inputs"][rows], "y": arrays["targets"][indices + self.context]}


def divided(
    inputs: np.ndarray, targets: np.ndarray, context: int, border: int, *, looks_back: bool
) -> dict[str, SeriesDataset]:
    """Returns the windows in the rows before a border, "train", and those from it on, "test".

    Everything is standardised with the rows before the border, but a single target stays as it is;
    its mean and standard deviation are facts.

    Args:
      inputs: `(rows, channels)`.
      targets: `(rows, outputs)`.
      context: rows of a window.
      border: where the test rows begin.
      looks_back: whether the first windows of the test rows begin before the border, so that every
        test row is a target. If not, the test rows are another series.

    Raises:
      ValueError: as `SeriesDataset`.
    """
    x, facts = standardised(inputs, slice(border)), {}
    if targets.shape[1] == 1:
        past = targets[:border]
        facts = {"mean": float(past.mean()), "std": float(past.std()) or 1.0}
    else:
        targets = standardised(targets, slice(border))
    x, y = x.astype(np.float32), targets.astype(np.float32)
    begin = max(0, border - context) if looks_back else border
    return {
        "train": SeriesDataset(x[:border], y[:border], context, facts),
        "test": SeriesDataset(x[begin:], y[begin:], context, facts),
    }


def standardised(table: np.ndarray, training: Any) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1 in the training rows; constant ones become 0."""
    mean, std = table[training].mean(0), table[training].std(0)
    return (table - mean) / np.where(std > 0, std, 1.0)
