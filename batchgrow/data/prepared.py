"""Data sets that tensorflow_datasets has prepared, read without TensorFlow."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from batchgrow.errors import first_line


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Without warnings of tensorflow_datasets about versions that were never finished."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@_errors_only()
def open_source(
    name: str, split: str, data_dir: str = "", *, decode: bool = True
) -> Sequence[dict[str, Any]]:
    """Random access to a split, by `tfds.data_source` over ArrayRecord files.

    Args:
      name: the name of a data set of tensorflow_datasets.
      split: such as "train".
      data_dir: where tensorflow_datasets keeps its data; "" for its own default ($TFDS_DATA_DIR).
      decode: images as uint8 arrays; otherwise as the encoded bytes on disk.

    Raises:
      ValueError: if the data set is unknown, not prepared, or cannot be read.
    """
    if data_dir.startswith("s3://"):
        raise ValueError(
            f"run.data_dir {data_dir!r}: ArrayRecord files are read from a disk or gs://; copy "
            "them to a disk of each host, or mount the bucket"
        )
    import tensorflow_datasets as tfds

    decoders = None if decode else {"image": tfds.decode.SkipDecoding()}
    directory = os.path.expanduser(data_dir) or None
    where = f"data.name {name!r} in run.data_dir {_shown(data_dir)!r}"
    builder = _builder(name, data_dir)
    if not builder.is_prepared():
        raise ValueError(
            f"{where} is not prepared; point --data_dir to a folder that has it, or add --download "
            f"to download {_size(builder)} (see {builder.info.homepage})"
        )
    try:
        source: Any = tfds.data_source(
            name, split=split, data_dir=directory, decoders=decoders, download=False
        )
        return source
    except Exception as error:
        raise ValueError(
            f"{where}: split {split!r} cannot be read ({_reason(error)}); check the name of the "
            "split, or delete the data set there and prepare it again"
        ) from error


@_errors_only()
def download(name: str, data_dir: str = "") -> None:
    """Downloads and prepares a data set of tensorflow_datasets, unless it is there.

    Args:
      name, data_dir: as in `open_source`.

    Raises:
      ValueError: if the data set is unknown or cannot be prepared.
    """
    builder = _builder(name, data_dir)
    if builder.is_prepared():
        return
    place = f"{name} ({_size(builder)}) from {builder.info.homepage} to {_shown(data_dir)}"
    print(f"downloading {place}", file=sys.stderr, flush=True)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise ValueError(
            f"{place} cannot be prepared ({_reason(error)}); most builders need TensorFlow for "
            "that (pip install tensorflow-cpu)"
        ) from error


def read_all(name: str, split: str, data_dir: str = "") -> list[dict[str, Any]]:
    """Every example of a split, decoded.

    Args:
      name, split, data_dir: as in `open_source`.

    Raises:
      ValueError: as `open_source`, or if a file is damaged.
    """
    source = open_source(name, split, data_dir)
    try:
        return [source[index] for index in range(len(source))]
    except Exception as error:
        raise ValueError(
            f"data.name {name!r} in run.data_dir {_shown(data_dir)!r}: a file of split {split!r} "
            f"is damaged or missing ({_reason(error)}); delete the folder {name!r} there and "
            "prepare it again"
        ) from error


@_errors_only()
def is_prepared(name: str, data_dir: str = "") -> bool:
    """Whether tensorflow_datasets has prepared a data set in `data_dir`."""
    try:
        return _builder(name, data_dir).is_prepared()
    except ValueError:  # unknown, or a store that cannot be reached
        return False


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"data.name {name!r} in run.data_dir {_shown(data_dir)!r} is not there, and "
            "tensorflow_datasets does not know it; check the name and the folder"
        ) from None
    except Exception as error:
        raise ValueError(
            f"data.name {name!r} in run.data_dir {_shown(data_dir)!r}: {_reason(error)}; check the "
            "name and the folder"
        ) from error


def _size(builder: Any) -> str:
    size = str(builder.info.download_size)
    return "an unknown size" if size.startswith("Unknown") else size


def _shown(data_dir: str) -> str:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return os.path.expanduser(data_dir) or default


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
