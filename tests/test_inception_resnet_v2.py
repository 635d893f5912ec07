"""Inception-ResNet-V2: published sizes, ghost batches, and logits against Keras."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.models.dropout import apply
from batchgrow.models.inception_resnet_v2 import InceptionResNetV2

# 139 is small, yet the last blocks still see 3x3 positions, so that 1x3 and 3x1 kernels matter.
IMAGES = np.random.default_rng(0).normal(size=(4, 139, 139, 3)).astype(np.float32)


def random_variables(model):
    """Kernels that keep the variance, scales one; biases and running statistics random."""
    rng = np.random.default_rng(1)
    draw = {
        "kernel": lambda shape: rng.normal(0.0, math.sqrt(2 / math.prod(shape[:-1])), shape),
        "scale": np.ones,
        "bias": lambda shape: rng.normal(0.0, 0.1, shape),
        "mean": lambda shape: rng.normal(0.0, 0.1, shape),
        "var": lambda shape: rng.uniform(0.5, 1.5, shape),
    }
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw[path[-1].key](leaf.shape).astype(np.float32), shapes
    )


def test_parameter_count_is_the_published_one():
    model = InceptionResNetV2(num_classes=1000, ghost_batch_size=32, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    logits, variables = jax.eval_shape(
        partial(model.init_with_output, train=False), jax.random.key(0), images
    )
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 55_843_464  # timm
    scales = [leaf["scale"].size for leaf in params.values() if "scale" in leaf]
    assert 55_843_464 - sum(scales) == 55_813_192  # Keras and TF-Slim: no scale
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert (logits.shape, logits.dtype) == ((1, 1000), jnp.float32)


@pytest.mark.slow
def test_training_in_bfloat16():
    """Finite, non-zero float32 gradients; float32 logits; ghost batches apart."""
    model = InceptionResNetV2(
        num_classes=10, ghost_batch_size=2, dtype=jnp.bfloat16, num_blocks=(1, 1, 1)
    )
    variables = random_variables(model)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def grad(params, images):
        keys = jax.random.split(jax.random.key(0), len(images))
        logits, _ = apply(model, variables | {"params": params}, images, keys, train=True)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), logits

    images = IMAGES[:, :75, :75]
    grads, logits = grad(variables["params"], images)
    assert logits.dtype == jnp.float32
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all() and leaf.any()

    _, others = grad(variables["params"], np.concatenate([images[:3], -images[3:]]))
    np.testing.assert_array_equal(others[:2], logits[:2])
    assert (np.abs(others[2:] - logits[2:]).max(axis=1) > 0.01).all()


@pytest.mark.slow
def test_training_drops_a_fifth_of_the_pooled_features():
    model = InceptionResNetV2(num_classes=10, ghost_batch_size=2, num_blocks=(1, 1, 1))
    assert model.dropout == 0.2  # TF-Slim: dropout_keep_prob=0.8
    variables = random_variables(model)
    # The classifier copies the pooled features.
    variables["params"]["classifier"] = {"kernel": np.eye(1536), "bias": np.zeros(1536)}
    copies = model.clone(num_classes=1536)
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def logits(keys):
        off = copies.clone(dropout=0.0)
        return [
            apply(m, variables, IMAGES[:, :75, :75], keys, train=True)[0] for m in (copies, off)
        ]

    dropped, whole = logits(keys)
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.8, rtol=1e-4)
    share = 1 - kept.sum() / (np.asarray(whole) != 0).sum()
    assert share == pytest.approx(0.2, abs=0.03)
    assert not (kept[0] == kept[1]).all()


@pytest.mark.slow
def test_logits_are_those_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    keras = pytest.importorskip("keras")
    # Its weights are replaced below; drawing them would take longer than everything else.
    monkeypatch.setattr(
        keras.initializers.GlorotUniform, "__call__", lambda _, shape, dtype: np.zeros(shape, dtype)
    )
    peer = keras.applications.InceptionResNetV2(
        weights=None, input_shape=(139, 139, 3), classes=10, classifier_activation=None
    )
    model = InceptionResNetV2(num_classes=10, ghost_batch_size=2)
    variables = random_variables(model)
    _copy_to_keras(variables, peer)
    with jax.default_matmul_precision("float32"):
        with jax.numpy_rank_promotion("allow"):
            theirs = peer.predict(IMAGES, verbose=0)
        ours = np.asarray(jax.jit(partial(model.apply, train=False))(variables, IMAGES))
    error, spread = np.abs(ours - theirs).max(), theirs.std(axis=0).mean()
    print(f"largest difference {error:.1e}; between images {spread:.2g}")
    assert error < 1e-4 * spread


def _copy_to_keras(variables, peer):
    """Layer for layer: Keras names the linear convolutions, and numbers the rest but one."""
    params, stats = variables["params"], variables["batch_stats"]
    convs = [params[f"Conv_{i}"] for i in range(sum(name.startswith("Conv_") for name in params))]
    linear = [
        f"{block}_{i}_conv"
        for block, repeats in (("block35", 10), ("block17", 20), ("block8", 10))
        for i in range(1, repeats + 1)
    ]
    kernels = [conv["kernel"] for conv in convs if "bias" not in conv]
    _set(peer, "conv2d", "conv_7b", [[kernel] for kernel in kernels])
    norms = [
        [params[name]["bias"], stats[name]["mean"], stats[name]["var"]]
        for name in (f"GhostBatchNorm_{i}" for i in range(len(stats)))
    ]
    _set(peer, "batch_normalization", "conv_7b_bn", norms)
    for name, conv in zip(linear, (conv for conv in convs if "bias" in conv), strict=True):
        peer.get_layer(name).set_weights([conv["kernel"], conv["bias"]])
    classifier = params["classifier"]
    peer.get_layer("predictions").set_weights([classifier["kernel"], classifier["bias"]])


def _set(peer, numbered, last, weights):
    """Weights for the layers `numbered`, `numbered`_1, ... in turn, and for the layer `last`."""
    names = [layer.name for layer in peer.layers if layer.name.startswith(numbered)]
    names.sort(key=lambda name: int("0" + name.removeprefix(numbered).removeprefix("_")))
    for name, arrays in zip([*names, last], weights, strict=True):
        peer.get_layer(name).set_weights(arrays)
