"""Data sets of Hugging Face's `datasets`, which is imported only here and only when it is used."""

import importlib
import pathlib
from typing import Any

import numpy as np

from batchgrow.data.datasets import Dataset
from batchgrow.data.pictures import make_pictures
from batchgrow.data.source import Part, Source, make_dataset, make_text_dataset, select
from batchgrow.errors import first_line

NUM_SEEN = 16  # images that say whether all are grey
GREY = ("1", "L", "LA")  # modes of PIL with 8 bits or fewer
COLOURED = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def open_hugging_face(source: Source, part: Part) -> Dataset:
    """Opens a data set of the hub, `hf:NAME[:CONFIG]`, or a folder of `save_to_disk`.

    Raises:
      ValueError: if `datasets` is not installed, or the data set cannot be loaded.
    """
    parts = {p: _load(source, p) for p in ("train", "test")} if _reads_text(source) else {}
    table = parts.get(part) or _load(source, part)
    return from_hugging_face(table, source, part, parts)


def _reads_text(source: Source) -> bool:
    is_text = any("tokens" in accepted for accepted in source.inputs)
    return is_text and source.test_share is None  # then the vocabulary is that of both splits


def _load(source: Source, part: Part) -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"data.name {source.name!r} needs the package datasets; pip install datasets"
        ) from error
    place, split = source.place, source.split(part)
    try:
        if pathlib.Path(place).is_dir():
            found = datasets.load_from_disk(place)
            if isinstance(found, dict):
                return found[split]
        else:
            name, _, config = place.partition(":")
            return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # Errors of the network, of the folder or of the names.
        raise ValueError(
            f"data.name {source.name!r}: split {split!r} cannot be loaded "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not source.is_whole and source.test_share is None:
        raise ValueError(
            f"data.name {source.name!r} has one split; set data.test_share to the share to test "
            "on, or save a DatasetDict"
        )
    return found


def from_hugging_face(table: Any, source: Source, part: Part, parts: dict[str, Any]) -> Dataset:
    """Returns what the task reads from a `datasets.Dataset`.

    Args:
      table: the split that holds the part.
      source: what the config says.
      part: "train" or "test".
      parts: both splits, for a text with two splits.

    Raises:
      ValueError: as `make_dataset`.
    """
    names = select(table.column_names, source)
    kinds = {name: type(table.features[column]).__name__ for name, column in names.items()}
    if list(names) == ["tokens"] and getattr(table.features[names["tokens"]], "dtype", "") in (
        "string",
        "large_string",
    ):
        texts = {key: "\n".join(t[names["tokens"]]) for key, t in (parts or {"all": table}).items()}
        return make_text_dataset({k: text.encode() for k, text in texts.items()}, source, part)
    if kinds.get("image") != "Image":
        columns = table.with_format("numpy")
        arrays = {column: np.asarray(columns[column][:]) for column in names.values()}
        return make_dataset(arrays, source, part, whole=source.test_share is None)
    if source.test_share is not None:
        table = table.select(source.indices(len(table), part))
    labels = np.asarray(table.with_format("numpy")[names["label"]][:], np.int32)
    classes = getattr(table.features[names["label"]], "num_classes", int(labels.max()) + 1)

    mode = _mode(table, names["image"], source)

    def read(index: int) -> np.ndarray:
        image = table[index][names["image"]]
        if mode is not None:
            _check_mode(image.mode, mode, source)
            image = image.convert(mode)
        image = np.asarray(image)
        return image if image.ndim == 3 else image[..., None]

    return make_pictures(read, labels, source, lambda i: f"image {i}", classes)


def _mode(table: Any, column: str, source: Source) -> str | None:
    """What all images are brought to: "L" if the first ones are grey, otherwise "RGB".

    None for a table that returns arrays.
    """
    images = [table[i][column] for i in range(min(len(table), NUM_SEEN))]
    if isinstance(images[0], np.ndarray):
        return None
    is_grey = all(image.mode in GREY for image in images)
    return "L" if is_grey else "RGB"


def _check_mode(given: str, mode: str, source: Source) -> None:
    """Raises a ValueError for an image of more than 8 bits, or of colours that `mode` drops."""
    if given not in (*GREY, *COLOURED):
        raise ValueError(
            f"data.name {source.name!r}: images of mode {given!r} are not supported; convert them "
            "to 8 bits"
        )
    if mode == "L" and given not in GREY:
        raise ValueError(
            f"data.name {source.name!r}: the first images are grey, and another has mode "
            f"{given!r}; convert all to RGB"
        )
