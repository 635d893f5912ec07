"""Texts as windows of tokens: characters or bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from batchgrow.data.datasets import ArrayBacked
from batchgrow.data.prepared import read_all
from batchgrow.data.tables import check_split

# For texts whose characters vary: a line feed and printable ASCII.
ASCII = "\n" + "".join(map(chr, range(32, 127)))
TEST_SHARE = 0.1  # of python_topics, at its end
TEXTS = ("tiny_shakespeare", "python_topics")
TOKENS = ("characters", "bytes")


@dataclass(frozen=True, eq=False)
class Text:
    """A text and the characters that stand for its tokens.

    Attributes:
      tokens: uint8 or int32 `(length,)`, the place of each character in `vocabulary`.
      vocabulary: the characters in the order of their tokens.
    """

    tokens: np.ndarray
    vocabulary: str

    @property
    def bytes_per_token(self) -> np.ndarray:
        """The UTF-8 bytes of each token, float32 `(vocabulary,)`."""
        return np.array([len(character.encode()) for character in self.vocabulary], np.float32)

    @property
    def facts(self) -> dict[str, Any]:
        """The facts for a model and a task (see `datasets.Dataset`)."""
        size = len(self.vocabulary)
        return {"vocab_size": size, "bytes_per_token": self.bytes_per_token}


class TextDataset(ArrayBacked):
    """Examples {"tokens": `(context + 1,)`}: windows that begin every `stride` tokens of a text.

    Attributes:
      arrays: {"tokens": the text, `(length,)`}, from which `take` cuts the windows.
      num_examples: the windows that the text has room for.
      facts: see `datasets.Dataset`; with "context".

    Args:
      tokens: integers `(length,)`.
      context: predictions in an example; its window has a token more.
      stride: by default `context`, so that each token except the first is predicted once.
      facts: further facts, such as "vocab_size".

    Raises:
      ValueError: if the text is shorter than a window, or `context` or `stride` is below 1.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        stride: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ):
        stride = context if stride is None else stride
        if context < 1 or stride < 1:
            raise ValueError(f"data.context {context} and stride {stride} must be 1 or more")
        if len(tokens) <= context:
            raise ValueError(
                f"data.context {context} needs {context + 1} tokens and the text has "
                f"{len(tokens)}: choose a smaller context"
            )
        self.arrays = {"tokens": tokens}
        self.context = context
        self.stride = stride
        self.num_examples = (len(tokens) - context - 1) // stride + 1
        self.facts = {"context": context, **(facts or {})}

    def take(self, arrays: dict[str, Any], indices: Any) -> dict[str, Any]:
        """Returns the examples at `indices`: {"tokens": `(*indices.shape, context + 1)`}.

        Args:
          arrays: `self.arrays`, of NumPy or on a device.
          indices: integers below `num_examples`, of NumPy or on a device.
        """
        offsets = np.arange(self.context + 1, dtype=np.int32)
        offsets = offsets.reshape((1,) * indices.ndim + (-1,))
        return {"tokens": arrays["tokens"][indices[..., None] * self.stride + offsets]}


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Returns the tokens of `text`: uint8 `(length,)`, or int32 for more than 256 characters.

    Raises:
      ValueError: if the text has a character that the vocabulary lacks.

    >>> encode("banana", "abn").tolist()
    [1, 0, 2, 0, 2, 0]
    """
    unknown = sorted(set(text) - set(vocabulary))
    if unknown:
        raise ValueError(
            f"the text has {len(unknown)} characters outside the vocabulary, such as "
            f"{unknown[0]!r}: use the vocabulary of all splits, or replace them"
        )
    places = {character: place for place, character in enumerate(vocabulary)}
    dtype = np.uint8 if len(vocabulary) <= 256 else np.int32
    return np.fromiter((places[character] for character in text), dtype, len(text))


def decode(tokens: np.ndarray, vocabulary: str) -> str:
    """Returns the text that the tokens stand for.

    >>> decode(np.array([1, 0, 2]), "abn")
    'ban'
    """
    return "".join(vocabulary[token] for token in tokens)


@lru_cache(maxsize=4)
def load_text(name: str, split: str, data_dir: str = "") -> Text:
    """Returns a split of a text as characters.

    Args:
      name: "tiny_shakespeare" (the vocabulary is that of its training text, 65 characters), or
        "python_topics": the help texts that ship with Python, which differ between its versions;
        their vocabulary is ASCII, and "?" replaces other characters.
      split: for tiny_shakespeare as in tensorflow_datasets, also joined ("validation+test"); of
        python_topics "train" or "test", its last tenth.
      data_dir: where tensorflow_datasets keeps its data; "" for its own default ($TFDS_DATA_DIR).

    Raises:
      ValueError: if there is no such text or split, or it is not prepared in `data_dir`.
    """
    if name == "tiny_shakespeare":
        vocabulary = "".join(sorted(set(_read_tfds(name, "train", data_dir))))
        return Text(encode(_read_tfds(name, split, data_dir), vocabulary), vocabulary)
    if name == "python_topics":
        return Text(encode(_python_topics(split), ASCII), ASCII)
    raise ValueError(f"data.name {name!r} is not a text: choose one of {', '.join(TEXTS)}")


def _read_tfds(name: str, split: str, data_dir: str) -> str:
    return "".join(example["text"].decode() for example in read_all(name, split, data_dir))


def _python_topics(split: str) -> str:
    from pydoc_data.topics import topics

    check_split("python_topics", split)
    known = set(ASCII)
    characters = "\n\n".join(topics[key] for key in sorted(topics))
    text = "".join(character if character in known else "?" for character in characters)
    border = round(len(text) * (1 - TEST_SHARE))
    return text[:border] if split == "train" else text[border:]


def read_tokens(
    texts: Mapping[str, bytes], tokens: str, where: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tokens of each text, and facts (see `datasets.Dataset`).

    Args:
      texts: the splits of a text. Their vocabulary is that of all of them together.
      tokens: "characters" or "bytes".
      where: a description of the text's place, for messages.

    Raises:
      ValueError: if `tokens` is unknown, or a text has no UTF-8 characters.
    """
    if tokens == "bytes":
        facts = {"vocab_size": 256, "bytes_per_token": 1.0}
        return {key: np.frombuffer(text, np.uint8) for key, text in texts.items()}, facts
    if tokens != "characters":
        raise ValueError(f"unknown data.tokens {tokens!r}; choose {', '.join(TOKENS)}")
    try:
        decoded = {key: text.decode() for key, text in texts.items()}
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not a text in UTF-8 (byte {error.start}); set data.tokens to 'bytes'"
        ) from error
    vocabulary = "".join(sorted(set("".join(decoded.values()))))
    encoded = {key: encode(text, vocabulary) for key, text in decoded.items()}
    return encoded, Text(next(iter(encoded.values())), vocabulary).facts
