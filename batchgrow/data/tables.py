"""Tables with a numeric target, held in memory."""

from typing import Any

import numpy as np

SPLITS = ("train", "test")


def load_table(name: str, split: str) -> dict[str, np.ndarray]:
    """Returns {"x": float32 `(examples, features)`, "y": float32 `(examples, outputs)`}.

    Args:
      name: "diabetes": scikit-learn's 442 patients, 353 to train and 89 to test, split at random
        once. x are ten measurements of mean 0 and variance 1; y is the progression of the disease
        after a year, from 25 to 346.
      split: "train" or "test".

    Raises:
      ValueError: if there is no such table or split.
    """
    if name != "diabetes":
        raise ValueError(f"data.name {name!r} is not a table: choose diabetes")
    check_split(name, split)
    from sklearn.datasets import load_diabetes

    table: Any = load_diabetes()
    count = len(table.target)
    order = np.random.default_rng(0).permutation(count)
    chosen = order[:353] if split == "train" else order[353:]
    x = table.data[chosen] * np.sqrt(count)  # The columns have a sum of squares of one.
    return {"x": x.astype(np.float32), "y": table.target[chosen, None].astype(np.float32)}


def check_split(name: str, split: str) -> None:
    """Checks the split of a data set that has `SPLITS`.

    Raises:
      ValueError: if it has no such split.
    """
    if split not in SPLITS:
        raise ValueError(
            f"{name} has no split {split!r}: set data.train_split and data.test_split to "
            f"{' or '.join(SPLITS)}"
        )
