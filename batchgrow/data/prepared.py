"""Data sets that tensorflow_datasets has prepared, read without TensorFlow."""

import os
from collections.abc import Sequence
from typing import Any


def open_source(
    name: str, split: str, data_dir: str = "", *, decode: bool = True
) -> Sequence[dict[str, Any]]:
    """Random access to a split, by `tfds.data_source` over ArrayRecord files.

    Args:
      name: of a data set of tensorflow_datasets.
      split: such as "train".
      data_dir: where tensorflow_datasets keeps its data; "" for its own default ($TFDS_DATA_DIR).
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


def is_prepared(name: str, data_dir: str = "") -> bool:
    """Whether tensorflow_datasets has prepared a data set in `data_dir`."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None).is_prepared()
    except Exception:  # unknown, or a store that cannot be reached
        return False
