"""Opens data sets by name: of this library, of files, of other libraries, or your own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from batchgrow.data.datasets import ArrayDataset, Dataset, SourceDataset
from batchgrow.data.files import open_csv, open_images, open_npz, open_series, open_text
from batchgrow.data.hugging_face import from_hugging_face, open_hugging_face
from batchgrow.data.prepared import is_prepared, read_all
from batchgrow.data.source import Part, Source, make_dataset, make_windows
from batchgrow.data.stream import RandomAccess
from batchgrow.data.tables import check_split, load_table
from batchgrow.data.text import TEXTS, load_text
from batchgrow.names import find

TABLES = ("diabetes",)
KINDS: dict[str, Callable[[Source, Part], Dataset]] = {
    "csv": open_csv,
    "hf": open_hugging_face,
    "images": open_images,
    "npz": open_npz,
    "series": open_series,
    "text": open_text,
}


def open_dataset(
    name: str, split: str, *, data_dir: str = "", context: int | None = None
) -> Dataset:
    """A split of a data set, for a loop of your own.

    Args:
      name: as in `open_part`. For a file without splits, all examples are used.
      split: such as "train" or "test".
      data_dir, context: as in `Source`.

    Raises:
      ValueError: as `open_part`.
    """
    source = Source(name, split, split, data_dir=data_dir, context=context, is_whole=True)
    return open_part(source, "train")


def open_part(source: Source, part: Part) -> Dataset:
    """The training or the test data of a source.

    Args:
      source: its `name` is one of

        - "digits", "diabetes", "tiny_shakespeare" or "python_topics";
        - "npz:PATH" or a path that ends in .npz, "images:FOLDER", "text:PATH", "csv:PATH",
          "series:PATH", in which "{split}" stands for the name of the split;
        - "hf:NAME", of Hugging Face;
        - "tfds:NAME" or another name: images of tensorflow_datasets;
        - "module:function" of your own, called with the name of the split. It returns a `Dataset`,
          arrays by name, a data set of Hugging Face, or examples by index (`RandomAccess`).
      part: "train" or "test".

    Raises:
      ValueError: if the data set is unknown or missing, or is not what the task reads.
    """
    name = source.name
    if not name:
        raise ValueError("data.name is not set; see docs/your_own.md for what it may be")
    if name.endswith(".npz") and ":" not in name:
        return open_npz(source, part)
    prefix, colon, rest = name.partition(":")
    if colon and prefix in KINDS:
        return KINDS[prefix](source, part)
    if prefix == "tfds":
        return open_part(replace(source, name=rest), part)
    if colon:
        return _your_own(find(name, {}, "data.name")(source.split(part)), source, part)
    split = source.split(part)
    if name in TEXTS:
        text = load_text(name, split, source.data_dir)
        whole = source.test_share is None
        return make_windows(text.tokens, source, part, text.facts, whole=whole)
    is_table = name in TABLES
    arrays = (
        load_table(name, split) if is_table else load_images(name, split, source.data_dir).arrays
    )
    return make_dataset(arrays, source, part, whole=source.test_share is None)


def name_of_tfds(name: str) -> str | None:
    """The name of a data set in tensorflow_datasets; None if it comes from elsewhere."""
    name = name.removeprefix("tfds:")
    is_other = not name or ":" in name or name.endswith(".npz")
    return None if is_other or name in ("digits", "python_topics", *TABLES) else name


def is_at_hand(source: Source) -> bool:
    """Whether a text, a table or an .npz file is there, so that opening it takes seconds at most.

    False for images, which must be decoded, for names that may have to be downloaded, and for
    functions of your own.
    """
    name = source.name.removeprefix("tfds:")
    if name in TEXTS:
        return name != "tiny_shakespeare" or is_prepared(name, source.data_dir)
    is_file = name.endswith(".npz") or name.partition(":")[0] in ("csv", "npz", "series", "text")
    return is_file and source.exists()


def _your_own(found: Any, source: Source, part: Part) -> Dataset:
    if isinstance(found, Mapping):
        return make_dataset(found, source, part, whole=source.test_share is None)
    if hasattr(found, "num_examples") and hasattr(found, "gather"):
        if source.test_share is not None:
            raise ValueError(
                f"data.test_share {source.test_share}: {source.name} returns a Dataset, which "
                "cannot be divided; set it to None and return the split that is asked for"
            )
        return found
    if hasattr(found, "column_names") and hasattr(found, "features"):
        return from_hugging_face(found, source, part, {})
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        raise ValueError(
            f"data.name {source.name!r} returns a {type(found).__name__}; return a Dataset, arrays "
            "by name, or examples by index"
        )
    if source.test_share is not None:
        found = _Chosen(found, source.indices(len(found), part))
    return SourceDataset(found)


class _Chosen:
    """Some examples of a source."""

    def __init__(self, source: RandomAccess, indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self._indices[index])]


@lru_cache(maxsize=4)
def load_images(name: str, split: str, data_dir: str = "") -> ArrayDataset:
    """Images `{"image": uint8 (h, w, c), "label": int32}`, decoded once in a process.

    Args:
      name: "digits" of scikit-learn, or an image data set of tensorflow_datasets.
      split: such as "train".
      data_dir: as in `Source`.

    Raises:
      ValueError: as `open_part`, or if the examples are not images with labels.
    """
    if name == "digits":
        return ArrayDataset(_digits(split))
    examples = read_all(name, split, data_dir)
    if not examples or not {"image", "label"} <= examples[0].keys():
        has = ", ".join(examples[0]) if examples else "no examples"
        raise ValueError(
            f"data.name {name!r} has {has}; of tensorflow_datasets, only data sets with 'image' "
            "and 'label' can be read by name: write a module:function that returns yours"
        )
    return ArrayDataset(
        {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.array([example["label"] for example in examples], np.int32),
        }
    )


def _digits(split: str) -> dict[str, np.ndarray]:
    """scikit-learn's 1,797 8x8 digits: 1,437 to train, 360 to test, split at random once."""
    from sklearn.datasets import load_digits

    check_split("digits", split)
    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    image = (digits.images[chosen, :, :, None] * 15).astype(np.uint8)  # 0..16 to 0..240
    return {"image": image, "label": digits.target[chosen].astype(np.int32)}
