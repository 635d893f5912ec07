"""The transformer: sizes, causality, initial values, and its forward pass in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.models import Transformer, make_model
from batchgrow.models.dropout import apply

SMALL = Transformer(vocab_size=11, context=8, layers=2, heads=2, channels=12, bias=True)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 8)).astype(np.uint8)


def initial(model, tokens=TOKENS):
    return jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))()


def count(model):
    shapes = jax.eval_shape(lambda: initial(model))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("bias", [False, True])
def test_number_of_parameters(bias):
    vocab, context, layers, channels = 11, 8, 3, 24
    model = Transformer(vocab, context, layers, 4, channels, bias=bias)
    expected = (vocab + context) * channels + layers * (12 * channels**2 + 2 * channels) + channels
    expected += bias * (11 * layers * channels + channels)
    assert count(model) == expected


def test_published_numbers_of_parameters():
    """nanoGPT's log counts all but the positions: 0.80M for its small run, 123.59M for GPT-2."""
    small = Transformer(65, context=64, layers=4, heads=4, channels=128)
    assert count(small) - 64 * 128 == 795_904
    gpt2 = Transformer(50304, context=1024, layers=12, heads=12, channels=768)
    assert count(gpt2) - 1024 * 768 == 123_587_328
    assert count(gpt2.clone(vocab_size=50257, bias=True)) == 124_439_808


def test_no_prediction_sees_a_later_token():
    """The gradient of the logits at t by the embedded token at u is zero iff u > t."""
    variables = initial(SMALL)
    positions = variables["params"]["position"]["embedding"]

    def logits(positions):
        params = variables["params"] | {"position": {"embedding": positions}}
        out = SMALL.apply({"params": params}, TOKENS[:1], train=False)[0]
        return (out * jnp.arange(11.0)[None]).sum(-1)

    gradient = jnp.abs(jax.jit(jax.jacobian(logits))(positions)).max(-1)  # (predictions, positions)
    np.testing.assert_array_equal(gradient > 0, np.tril(np.ones((8, 8), bool)))


def test_initial_values_are_nanogpts():
    params = initial(Transformer(65, 64, layers=8, heads=4, channels=128, bias=True))["params"]
    block = params["block_3"]
    for name in ("query_key_value", "hidden"):
        assert np.std(block[name]["kernel"]) == pytest.approx(0.02, rel=0.03)
    for name in ("attention_output", "hidden_output"):
        assert np.std(block[name]["kernel"]) == pytest.approx(0.02 / 4, rel=0.03)
    for name in ("token", "position"):
        assert np.std(params[name]["embedding"]) == pytest.approx(0.02, rel=0.05)
    assert not any(block[name]["bias"].any() for name in block if "bias" in block[name])


def test_forward_pass_is_gpt2s():
    """Against the equations, written in NumPy for one example and one head at a time."""
    variables = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(0.0, 0.5, leaf.shape), initial(SMALL)
    )
    params = variables["params"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def norm(x, layer):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * layer["scale"][None] + layer["bias"][None]

    erf = np.vectorize(math.erf)
    for tokens, found in zip(TOKENS, SMALL.apply(variables, TOKENS, train=False), strict=True):
        x = params["token"]["embedding"][tokens] + params["position"]["embedding"]
        for block in (params["block_0"], params["block_1"]):
            qkv = dense(norm(x, block["attention_norm"]), block["query_key_value"])
            heads = []
            for head in range(2):
                q, k, v = (qkv[:, 12 * i + 6 * head : 12 * i + 6 * head + 6] for i in range(3))
                scores = np.where(np.tril(np.ones((8, 8))), q @ k.T / np.sqrt(6), -np.inf)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ v)
            x = x + dense(np.concatenate(heads, -1), block["attention_output"])
            h = dense(norm(x, block["hidden_norm"]), block["hidden"])
            x = x + dense(h * (1 + erf(h / np.sqrt(2))) / 2, block["hidden_output"])
        logits = norm(x, params["norm"]) @ params["token"]["embedding"].T
        np.testing.assert_allclose(found, logits, rtol=2e-4, atol=2e-4)


def test_dropout_is_off_in_evaluation_and_by_example_in_training():
    model = SMALL.clone(dropout=0.2)
    variables = initial(model)
    keys = jax.random.split(jax.random.key(1), 3)
    run = jax.jit(lambda tokens, keys: apply(model, variables, tokens, keys, train=True)[0])
    trained = run(TOKENS, keys)
    evaluated, _ = apply(model, variables, TOKENS, None, train=False)
    np.testing.assert_array_equal(evaluated, SMALL.apply(variables, TOKENS, train=False))
    assert (trained != evaluated).any(-1).all()
    np.testing.assert_allclose(trained[1:2], run(TOKENS[1:2], keys[1:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model = make_model("transformer", dtype="bfloat16", vocab_size=11, context=8, layers=1,
                       heads=2, channels=12)  # fmt: skip
    logits, variables = model.init_with_output(jax.random.key(0), TOKENS, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}
    assert (logits.astype(jnp.bfloat16) != logits).any()  # not rounded
    full, _ = apply(model.clone(dtype=jnp.float32), variables, TOKENS, None, train=False)
    assert 0 < np.abs(logits - full).max() < 0.02


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="model.channels 12 must be a multiple of model.heads 5"):
        initial(SMALL.clone(heads=5))
    with pytest.raises(ValueError, match="8 tokens exceed model.context 7"):
        initial(SMALL.clone(context=7))
