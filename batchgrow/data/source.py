"""The data fields of a config, and the arrays that a task takes from a source."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from batchgrow.data.datasets import ArrayDataset, Dataset
from batchgrow.data.text import TextDataset, read_tokens

Part = Literal["train", "test"]
# The arrays that a task reads; for each, its own name first and then other names that it accepts.
Inputs = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Source:
    """The place of the examples: the fields of `config.data` as plain values.

    Attributes:
      name: as in `catalog.open_part`.
      train_split: the name of the split to train on.
      test_split: the name of the split to test on.
      test_share: for a source with one split, the share of its examples to test on; None where
        training and test data are separate.
      data_dir: where tensorflow_datasets keeps its data; "" for its own default ($TFDS_DATA_DIR).
      context: the tokens of a text or the rows of a series that a model sees.
      tokens: the tokens of a text: "characters" or "bytes".
      image_size: the side of decoded images in pixels; None if all have one size.
      target: the columns of a table to predict, separated by commas.
      columns: the names of the arrays in the order of `inputs`, separated by commas; None for the
        task's own names. Of a table, the columns to read (see `files.open_csv`); None for all.
      in_memory: whether the examples are decoded once and kept.
      inputs: what the task reads; () for every array by its own name.
      is_whole: whether all examples belong to the part that is asked for.
    """

    name: str
    train_split: str = "train"
    test_split: str = "test"
    test_share: float | None = None
    data_dir: str = ""
    context: int | None = None
    tokens: str = "characters"
    image_size: int | None = None
    target: str | None = None
    columns: str | None = None
    in_memory: bool = True
    inputs: Inputs = ()
    is_whole: bool = False

    @property
    def place(self) -> str:
        """The name without its prefix."""
        return self.name.partition(":")[2] or self.name

    def split(self, part: Part) -> str:
        """The name of the split that holds the part."""
        return self.train_split if part == "train" or self.test_share else self.test_split

    def path(self, part: Part) -> pathlib.Path:
        """The file or folder of a part.

        Raises:
          ValueError: if there is none.
        """
        path = pathlib.Path(self.place.replace("{split}", self.split(part))).expanduser()
        if not path.exists():
            raise ValueError(f"data.name {self.name!r}: {path.absolute()} does not exist")
        return path

    def exists(self) -> bool:
        """Whether the files or folders of both parts exist."""
        try:
            return bool(self.path("train") and self.path("test"))
        except ValueError:
            return False

    @property
    def has_paths(self) -> bool:
        """Whether training and test data have paths of their own."""
        return self.is_whole or ("{split}" in self.place and self.test_share is None)

    def share(self, count: int) -> int:
        """The number of test examples if a source with one split has `count` examples.

        Raises:
          ValueError: if no share is set, or it leaves no example to train or to test on.
        """
        if self.test_share is None:
            raise ValueError(
                f"data.name {self.name!r} has one split; set data.test_share to the share to test "
                "on, such as 0.1, or write {split} in the path in place of the split's name"
            )
        num_test = round(count * self.test_share)
        if not 0 < num_test < count:
            raise ValueError(
                f"data.test_share {self.test_share} of {count} examples leaves {num_test} to test "
                f"and {count - num_test} to train on; both must be 1 or more"
            )
        return num_test

    def indices(self, count: int, part: Part) -> np.ndarray:
        """The examples of a part if one split is shared: drawn at random once, in their order."""
        num_test = self.share(count)
        order = np.random.default_rng(0).permutation(count)
        return np.sort(order[:num_test] if part == "test" else order[num_test:])


def make_dataset(
    arrays: Mapping[str, Any], source: Source, part: Part, *, whole: bool, suffix: str = ""
) -> Dataset:
    """A data set of what the task reads from named arrays.

    Args:
      arrays: by name, examples first; a one-dimensional "tokens" is a text.
      source: what the config says.
      part: "train" or "test".
      whole: whether all examples belong to the part; otherwise `source.test_share` divides them.
      suffix: the end of each name that `arrays` lacks, such as "_train", for messages.

    Raises:
      ValueError: if an array is missing, has an unusable dtype, a number that is not finite, or
        another length than the others.
    """
    names = select(arrays, source)
    chosen = {
        name: _usable(np.asarray(arrays[given]), name, f"{given}{suffix}", source)
        for name, given in names.items()
    }
    if list(chosen) == ["tokens"] and chosen["tokens"].ndim == 1:
        tokens = chosen["tokens"]
        facts = {"vocab_size": int(tokens.max(initial=0)) + 1}
        return make_windows(tokens, source, part, facts, whole=whole)
    lengths = {f"{given}{suffix}": len(chosen[name]) for name, given in names.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise ValueError(f"data.name {source.name!r}: arrays of unequal length ({shown})")
    if not whole:
        indices = source.indices(next(iter(lengths.values())), part)
        chosen = {name: array[indices] for name, array in chosen.items()}
    if not all(map(len, chosen.values())):
        raise ValueError(f"data.name {source.name!r}: the {part} split has no examples")
    return ArrayDataset(chosen, array_facts(chosen))


def make_text_dataset(texts: Mapping[str, bytes], source: Source, part: Part) -> Dataset:
    """The windows of a text.

    Args:
      texts: "train" and "test", or one text, of which a test share is taken from the end.

    Raises:
      ValueError: as `read_tokens`, or if the text is shorter than a window.
    """
    tokens, facts = read_tokens(texts, source.tokens, f"data.name {source.name!r}")
    if part in tokens:
        return make_windows(tokens[part], source, part, facts, whole=True)
    (tokens,) = tokens.values()
    return make_windows(tokens, source, part, facts, whole=False)


def make_windows(
    tokens: np.ndarray, source: Source, part: Part, facts: Mapping[str, Any], *, whole: bool
) -> Dataset:
    """The windows of `source.context` tokens of a text.

    Args:
      tokens: `(tokens,)`, whole numbers.
      source: what the config says.
      part: "train" or "test".
      facts: what the tokens determine (see `datasets.Dataset`).
      whole: whether all tokens belong to the part; otherwise the test share is taken from the end.

    Raises:
      ValueError: if there is no context or share, or the part is shorter than a window.
    """
    if source.context is None:
        raise ValueError(
            "data.context is not set; set it to the number of tokens that a model sees"
        )
    if not whole:
        border = len(tokens) - source.share(len(tokens))
        tokens = tokens[:border] if part == "train" else tokens[border:]
    return TextDataset(tokens, source.context, facts=facts)


def select(given: Iterable[str], source: Source) -> dict[str, str]:
    """Returns the names of the arrays that the task reads: the task's name -> the given name.

    Raises:
      ValueError: if one is missing.
    """
    given = list(given)
    if not source.inputs:
        return {name: name for name in given}
    names = [[name] for name in source.columns.split(",")] if source.columns else source.inputs
    if len(names) != len(source.inputs):
        raise ValueError(
            f"data.columns {source.columns!r} has {len(names)} names; the task reads "
            f"{len(source.inputs)}: {', '.join(accepted[0] for accepted in source.inputs)}"
        )
    chosen = {}
    for accepted, (own_name, *_) in zip(names, source.inputs, strict=True):
        found = next((name.strip() for name in accepted if name.strip() in given), None)
        if found is None:
            needs = " and ".join(" or ".join(map(repr, names)) for names in source.inputs)
            raise ValueError(
                f"data.name {source.name!r} has {', '.join(map(repr, given)) or 'nothing'}, but "
                f"the task needs {needs}; set data.columns to the names, in this order"
            )
        chosen[own_name] = found
    return chosen


def _usable(array: np.ndarray, name: str, given: str, source: Source) -> np.ndarray:
    """The array in a dtype that JAX has, and in the shape that a task expects.

    Args:
      array: the array of the user.
      name: the task's name of it.
      given: the user's name of it.
      source: what the config says.
    """
    where, shown = f"data.name {source.name!r}: the array {given!r}", array.dtype
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{where} has dtype {shown}; it must hold numbers, of one shape for all examples"
        )
    if not array.ndim:
        raise ValueError(f"{where} is one number; its first axis must count the examples")
    if name in ("label", "tokens"):
        if array.dtype.kind == "f":
            raise ValueError(f"{where} has dtype {shown}; it must hold whole numbers, from 0 on")
        if name == "tokens" and array.size and array.min() < 0:
            raise ValueError(f"{where} has {array.min()}; tokens are whole numbers, from 0 on")
        if name == "label" and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if name == "label" and array.ndim != 1:
            raise ValueError(f"{where} has shape {array.shape}; give one number for each example")
    if name == "label" or (array.dtype.kind in "biu" and array.dtype != np.uint8):
        limits = np.iinfo(np.int32)
        if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
            raise ValueError(f"{where} has values beyond int32; use smaller numbers")
        array = array.astype(np.int32, copy=False)
    if name == "y" or array.dtype.kind == "f":
        before = array
        with np.errstate(over="ignore"):  # It is reported here.
            array = array.astype(np.float32, copy=False)
        if source.inputs:  # A task that does not say what it reads may have a use for NaN.
            _check_finite(array, before, where)
    if name == "image" and array.ndim == 3 and array.dtype == np.uint8:
        array = array[..., None]  # grey images without an axis of channels
    return array[:, None] if name == "y" and array.ndim == 1 else array


def _check_finite(array: np.ndarray, before: np.ndarray, where: str) -> None:
    """Raises ValueError with the first index of a number that is not finite as float32."""
    if not array.size or np.isfinite([array.min(), array.max()]).all():
        return
    index = np.unravel_index(np.argmin(np.isfinite(array)), array.shape)
    raise ValueError(
        f"{where} has {before[index]} at index [{', '.join(map(str, index))}], which is not a "
        "finite float32 number; replace it, or leave the example out"
    )


def classes(count: int) -> dict[str, int]:
    """Facts of data with so many classes: a model names them or its outputs."""
    return {"num_classes": count, "outputs": count}


def array_facts(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the fields of a model or a task that the arrays determine."""
    facts: dict[str, Any] = {}
    for name in ("image", "x"):
        if name in arrays and arrays[name].ndim > 1:
            facts |= {"in_features": arrays[name].shape[-1], "in_shape": arrays[name].shape[1:]}
    if "label" in arrays:
        facts |= classes(int(arrays["label"].max()) + 1)
    if "y" in arrays and arrays["y"].ndim == 2:
        facts["outputs"] = arrays["y"].shape[1]
        if facts["outputs"] == 1:
            facts |= {"mean": float(arrays["y"].mean()), "std": float(arrays["y"].std()) or 1.0}
    if "tokens" in arrays:
        facts["vocab_size"] = int(arrays["tokens"].max()) + 1
        facts["context"] = arrays["tokens"].shape[1] - 1
    return facts
