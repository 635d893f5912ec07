"""Data sets by name."""

from functools import lru_cache
from typing import Any

import numpy as np

from batchgrow.data.datasets import ArrayDataset, Dataset
from batchgrow.data.prepared import open_source
from batchgrow.data.tables import load_table
from batchgrow.data.text import TEXTS, TextDataset, load_text
from batchgrow.names import find

TABLES = ("diabetes",)
SPLITS = ("train", "test")  # of the digits


def open_dataset(
    name: str, split: str, *, data_dir: str = "", context: int | None = None
) -> Dataset:
    """A split of a data set, in memory.

    Args:
      name: "digits" or "diabetes" of scikit-learn; a text ("tiny_shakespeare", "python_topics"); an
        image data set of tensorflow_datasets; or `module:function`, which is called with the split
        and returns a `Dataset`.
      split: such as "train" or "test".
      data_dir: where tensorflow_datasets keeps its data; "" for its own default ($TFDS_DATA_DIR).
      context: of a text: the number of tokens that a model sees.

    Raises:
      ValueError: if the data set is unknown, or not there and cannot be prepared.
    """
    if ":" in name:
        return find(name, {}, "data.name")(split)
    if name in TEXTS:
        if context is None:
            raise ValueError("data.context is not set; a text needs the number of tokens to see")
        return TextDataset(load_text(name, split, data_dir).tokens, context)
    if name in TABLES:
        return ArrayDataset(load_table(name, split))
    return load_images(name, split, data_dir)


@lru_cache(maxsize=4)
def load_images(name: str, split: str, data_dir: str = "") -> ArrayDataset:
    """Images `{"image": uint8 (h, w, c), "label": int32}`, decoded once in a process.

    Args:
      name, split, data_dir: as in `open_dataset`.

    Raises:
      ValueError: as `open_dataset`.
    """
    if name == "digits":
        return ArrayDataset(_digits(split))
    source = open_source(name, split, data_dir)
    examples = [source[i] for i in range(len(source))]
    return ArrayDataset(
        {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.array([example["label"] for example in examples], np.int32),
        }
    )


def _digits(split: str) -> dict[str, np.ndarray]:
    """scikit-learn's 1,797 8x8 digits: 1,437 to train, 360 to test, split at random once."""
    from sklearn.datasets import load_digits

    if split not in SPLITS:
        raise ValueError(f"digits has no split {split!r}; choose {' or '.join(SPLITS)}")
    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    image = (digits.images[chosen, :, :, None] * 15).astype(np.uint8)  # 0..16 to 0..240
    return {"image": image, "label": digits.target[chosen].astype(np.int32)}
