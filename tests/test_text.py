"""Texts: windows, characters, and the two texts that can be named."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.data.text import ASCII, TextDataset, decode, encode, load_text


def has_shakespeare():
    data_dir = os.environ.get("TFDS_DATA_DIR", "")
    return bool(data_dir) and os.path.isdir(os.path.join(data_dir, "tiny_shakespeare"))


@pytest.mark.parametrize(("length", "num_examples"), [(9, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_each_token_but_the_first_is_predicted_once(length, num_examples):
    data = TextDataset(np.arange(length), context=8)
    assert data.num_examples == num_examples
    windows = data.gather(np.arange(num_examples))["tokens"]
    np.testing.assert_array_equal(windows[:, 1:].ravel(), np.arange(1, 8 * num_examples + 1))
    np.testing.assert_array_equal(windows[:, :-1].ravel(), np.arange(8 * num_examples))


def test_windows_may_begin_anywhere():
    data = TextDataset(np.arange(20), context=8, stride=1)
    assert data.num_examples == 12
    np.testing.assert_array_equal(data.gather(np.array(11))["tokens"], np.arange(11, 20))


def test_windows_on_the_device_are_those_of_the_host():
    """Indices of any shape; tokens keep their type."""
    tokens = np.random.default_rng(0).integers(0, 65, 100).astype(np.uint8)
    data = TextDataset(tokens, context=8, stride=5)
    indices = np.random.default_rng(1).integers(0, data.num_examples, (2, 3, 4))
    host = data.gather(indices)["tokens"]
    assert host.shape == (2, 3, 4, 9) and host.dtype == np.uint8
    np.testing.assert_array_equal(host[1, 2, 3], tokens[5 * indices[1, 2, 3] :][:9])
    arrays = jax.tree.map(jnp.asarray, data.arrays)
    device = jax.jit(data.take)(arrays, jnp.asarray(indices, jnp.int32))["tokens"]
    assert device.dtype == jnp.uint8
    np.testing.assert_array_equal(device, host)


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="data.context 8 needs 9 tokens and the text has 8"):
        TextDataset(np.arange(8), context=8)
    with pytest.raises(ValueError, match="data.context 8 and stride 0 must be 1 or more"):
        TextDataset(np.arange(80), context=8, stride=0)


def test_characters_come_back():
    text = "Grün ist die Wiese, 緑"
    vocabulary = "".join(sorted(set(text)))
    assert decode(encode(text, vocabulary), vocabulary) == text
    many = "".join(map(chr, range(32, 400)))
    assert encode(many, many).dtype == np.int32
    with pytest.raises(ValueError, match="2 characters outside the vocabulary, such as 'y'"):
        encode("xyz", "x")


def test_python_topics():
    train, test = (load_text("python_topics", split) for split in ("train", "test"))
    assert train.vocabulary == test.vocabulary == ASCII and len(ASCII) == 96
    share = len(test.tokens) / (len(train.tokens) + len(test.tokens))
    assert share == pytest.approx(0.1, abs=1e-4)
    assert "statement" in decode(train.tokens, ASCII)
    assert (train.bytes_per_token == 1).all()
    with pytest.raises(ValueError, match="python_topics has no split 'validation'"):
        load_text("python_topics", "validation")
    with pytest.raises(ValueError, match="data.name 'bible' is not a text"):
        load_text("bible", "train")


@pytest.mark.skipif(not has_shakespeare(), reason="needs tiny_shakespeare in TFDS_DATA_DIR")
def test_tiny_shakespeare():
    """Lengths of nanoGPT's split, whose validation part is validation and test together."""
    train = load_text("tiny_shakespeare", "train")
    held_out = load_text("tiny_shakespeare", "validation+test")
    assert (len(train.tokens), len(held_out.tokens)) == (1_003_854, 111_540)
    assert len(train.vocabulary) == 65 and held_out.vocabulary == train.vocabulary
    assert decode(train.tokens[:14], train.vocabulary) == "First Citizen:"
    halves = [load_text("tiny_shakespeare", split).tokens for split in ("validation", "test")]
    np.testing.assert_array_equal(np.concatenate(halves), held_out.tokens)


def test_a_text_that_cannot_be_read_is_refused_in_one_line():
    with pytest.raises(ValueError, match="run.data_dir 's3://bucket'") as refusal:
        load_text("tiny_shakespeare", "train", "s3://bucket")
    assert "\n" not in str(refusal.value)
