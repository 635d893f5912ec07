"""Data sets: the embedded digits, and any image set that tensorflow_datasets has prepared."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

SPLITS = ("train", "test")  # of the digits
ON_BAD_RECORD = ("stop", "replace")  # what a stream of encoded records does with a damaged one


class BadRecordError(RuntimeError):
    """A record that cannot be read or decoded."""

    def __init__(self, index: int, file_name: str, reason: str):
        super().__init__(index, file_name, reason)  # the arguments, so that it pickles
        self.index = index
        self.reason = reason
        self.file_name = file_name

    def __str__(self) -> str:
        return f"bad record {self.index} ({self.file_name}): {self.reason}"


@dataclass(frozen=True)
class Images:
    """A split held in memory.

    Attributes:
      image: uint8 `(num_examples, height, width, channels)`.
      label: int32 `(num_examples,)`.
    """

    image: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image[index], "label": self.label[index]}


@lru_cache(maxsize=4)
def load_images(name: str, split: str, data_dir: str = "") -> Images:
    """A whole split in memory, decoded once per process.

    Args:
      name: "digits" or the name of an image data set of tensorflow_datasets.
      split: "train" or "test".
      data_dir: where tensorflow_datasets keeps its data; "" for its own default ($TFDS_DATA_DIR).

    Raises:
      ValueError: if the data set is not there and cannot be prepared.
    """
    if name == "digits":
        if split not in SPLITS:
            raise ValueError(f"data: digits has no split {split!r}, only {' and '.join(SPLITS)}")
        return _digits(split)
    source = open_source(name, split, data_dir)
    examples = [source[i] for i in range(len(source))]
    images = np.stack([example["image"] for example in examples])
    return Images(images, np.array([example["label"] for example in examples], np.int32))


def open_source(
    name: str, split: str, data_dir: str = "", *, decode: bool = True
) -> Sequence[dict[str, Any]]:
    """Random access to a split through `tfds.data_source` (ArrayRecord files, no TensorFlow).

    Args:
      name, split, data_dir: as in `load_images`.
      decode: images as uint8 arrays; otherwise as the encoded bytes on disk.

    Raises:
      ValueError: if the data set is unknown, or not there and cannot be prepared.
    """
    if data_dir.startswith("s3://"):
        raise ValueError(
            f"run.data_dir {data_dir!r}: ArrayRecord files are read from a disk or gs://; copy "
            "them to a disk of each host, or mount the bucket"
        )
    import tensorflow_datasets as tfds

    decoders = None if decode else {"image": tfds.decode.SkipDecoding()}
    directory = os.path.expanduser(data_dir) or None
    shown = directory or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    try:
        builder = tfds.builder(name, data_dir=directory)
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
        source: Any = tfds.data_source(
            name, split=split, data_dir=directory, decoders=decoders, download=False
        )
        return source
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"data.name {name!r}: split {split!r} cannot be read from run.data_dir {shown!r} "
            f"({type(error).__name__}: {reason}); prepare it there with tensorflow_datasets, "
            "for which most builders want TensorFlow (pip install tensorflow-cpu)"
        ) from error


def _digits(split: str) -> Images:
    """scikit-learn's 1,797 8x8 digits: 1,437 to train, 360 to test, split at random once."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    image = (digits.images[chosen, :, :, None] * 15).astype(np.uint8)  # 0..16 to 0..240
    return Images(image, digits.target[chosen].astype(np.int32))
