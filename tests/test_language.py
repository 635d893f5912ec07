"""The language task: its loss, metrics and keys, a text that it learns, and sampling."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from batchgrow.models import Transformer
from batchgrow.tasks.language import LanguageModel, sample

TOKENS = np.random.default_rng(0).integers(0, 5, (6, 9)).astype(np.uint8)


class Bigrams(nn.Module):
    """Logits that depend on the last token alone."""

    vocab_size: int = 5

    @nn.compact
    def __call__(self, tokens, *, train):
        return nn.Embed(self.vocab_size, self.vocab_size, name="logits")(tokens.astype(jnp.int32))


def total(outputs):
    sums = {"count": float(outputs.losses.size), "loss": float(outputs.losses.sum())}
    return sums | {name: float(values.sum()) for name, values in outputs.metrics.items()}


def test_loss_is_the_mean_cross_entropy_of_the_next_token():
    task = LanguageModel(Bigrams())
    variables = task.init(jax.random.key(0), {"tokens": jnp.zeros((1, 9), jnp.int32)})
    table = np.asarray(variables["params"]["logits"]["embedding"], np.float64)
    log_p = table - np.log(np.exp(table).sum(1, keepdims=True))
    expected = [-np.mean([log_p[a, b] for a, b in zip(w, w[1:], strict=False)]) for w in TOKENS]
    outputs = task.loss(variables, {"tokens": TOKENS}, None, train=False)
    assert outputs.losses.dtype == jnp.float32 and outputs.model_state == {}
    np.testing.assert_allclose(outputs.losses, expected, rtol=1e-5)


def test_metrics():
    """A uniform guess among five tokens, of which one takes three bytes."""
    sizes = np.array([1, 1, 1, 1, 3], np.float32)
    num_bytes = sizes[TOKENS[:, 1:]].sum()
    for bytes_per_token, expected in ((sizes, num_bytes), (2.0, 2 * 48)):
        task = LanguageModel(Bigrams(), bytes_per_token)
        variables = {"params": {"logits": {"embedding": jnp.zeros((5, 5))}}}
        metrics = task.summarize(total(task.loss(variables, {"tokens": TOKENS}, None, train=False)))
        assert list(metrics) == [metric.name for metric in task.metrics]
        assert metrics["loss"] == pytest.approx(math.log(5), rel=1e-6)
        assert metrics["perplexity"] == pytest.approx(5, rel=1e-6)
        assert metrics["bits_per_byte"] == pytest.approx(48 * math.log2(5) / expected, rel=1e-6)
    diverged = task.summarize({"count": 1.0, "loss": 1e6, "bytes_per_token": 1.0})
    assert diverged["perplexity"] == math.inf


def test_sums_of_parts_are_those_of_the_whole():
    """With dropout: the losses of a batch do not depend on how it is split."""
    task = LanguageModel(Transformer(5, 8, layers=1, heads=2, channels=8, dropout=0.3))
    variables = task.init(jax.random.key(0), {"tokens": jnp.zeros((1, 9), jnp.int32)})
    keys = jax.random.split(jax.random.key(1), 6)
    loss = jax.jit(lambda tokens, keys: task.loss(variables, {"tokens": tokens}, keys, train=True))
    whole = loss(TOKENS, keys).losses
    parts = [loss(TOKENS[i : i + 2], keys[i : i + 2]).losses for i in (0, 2, 4)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5)
    assert np.abs(whole - loss(TOKENS, keys[::-1]).losses).min() > 1e-6


@pytest.fixture(scope="module")
def cycle():
    """A model that has learned to count 0 1 2 3 4 0 1 ..., and its last loss."""
    task = LanguageModel(Transformer(5, 8, layers=1, heads=2, channels=16, dropout=0.1))
    tokens = (np.arange(9)[None] + np.arange(5)[:, None]) % 5
    variables = task.init(jax.random.key(0), {"tokens": jnp.zeros((1, 9), jnp.int32)})
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, keys):
        def loss(params):
            return task.loss({"params": params}, {"tokens": tokens}, keys, train=True).losses.mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = variables["params"]
    state = optimizer.init(params)
    for update in range(100):
        params, state = step(params, state, jax.random.split(jax.random.key(update), 5))
    variables = {"params": params}
    return task, variables, task.loss(variables, {"tokens": tokens}, None, train=False).losses


def test_learns(cycle):
    assert cycle[2].max() < 0.1


@pytest.mark.parametrize("length", [1, 5, 20])
def test_sample_goes_on_beyond_the_context(cycle, length):
    task, variables, _ = cycle
    prompt = np.arange(length) % 5
    written = sample(
        task.model, variables, prompt, 30, jax.random.key(0), context=8, temperature=0.3
    )
    np.testing.assert_array_equal(written, (length + np.arange(30)) % 5)


def test_sample_draws_from_the_model():
    """Frequencies of a model that knows them; a cold sample takes the likeliest."""
    p = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    variables = {"params": {"logits": {"embedding": jnp.tile(jnp.log(p)[None], (5, 1))}}}

    def draw(temperature):
        prompt = np.array([3])
        key = jax.random.key(0)
        return sample(Bigrams(), variables, prompt, 2000, key, context=4, temperature=temperature)

    found = np.bincount(draw(1.0), minlength=5) / 2000
    np.testing.assert_allclose(found, p, atol=5 * 0.5 / math.sqrt(2000))
    assert (draw(0.01) == 0).all()
    with pytest.raises(ValueError, match="prompt is empty"):
        sample(Bigrams(), variables, np.array([], int), 3, jax.random.key(0), context=4)
