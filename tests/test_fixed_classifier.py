"""The fixed classifier: its matrices, logits, parameters, and weight decay."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from batchgrow.models import ResNet, WideResNet
from batchgrow.models.fixed_classifier import FixedClassifier, hadamard, orthonormal
from batchgrow.optimizer import make_optimizer


def count(model) -> int:
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), image)
    assert set(shapes) == {"params", "batch_stats"}
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes["params"]))


def test_hadamard_is_sylvesters_matrix_truncated():
    np.testing.assert_allclose(hadamard(32, 32) * np.sqrt(32), linalg.hadamard(32))
    cut = np.asarray(hadamard(10, 48), np.float64)
    np.testing.assert_allclose(cut * np.sqrt(48), linalg.hadamard(64)[:10, :48], rtol=1e-6)
    assert len(np.unique(cut, axis=0)) == 10
    np.testing.assert_allclose(np.square(cut).sum(1), 1, rtol=1e-6)


def test_orthonormal_rows():
    found = orthonormal(10, 48)
    np.testing.assert_allclose(found @ found.T, np.eye(10), atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(("kind", "matrix"), [("hadamard", hadamard), ("orthonormal", orthonormal)])
def test_logits_by_hand(kind, matrix):
    """s Q x / |x| + b, whatever the length of x."""
    x = np.random.default_rng(0).normal(size=(7, 48)).astype(np.float32)
    model = FixedClassifier(10, kind)
    variables = model.init(jax.random.key(0), x)
    assert jax.tree.map(np.shape, variables) == {"params": {"logit_scale": (), "bias": (10,)}}
    assert variables["params"]["logit_scale"] == 10 and not variables["params"]["bias"].any()
    params = {"logit_scale": jnp.array(3.0), "bias": jnp.arange(10.0)}
    direction = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = 3 * direction @ np.asarray(matrix(10, 48)).T + np.arange(10)
    for length in (1.0, 1e-3, 1e3):
        logits = model.apply({"params": params}, length * x)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda x: model.apply({"params": params}, x).sum())(jnp.zeros((1, 48)))
    assert np.isfinite(gradient).all()


def test_parameters_of_resnet_50_and_a_wide_resnet():
    """2048 x 1000 weights less, one scale more: 8% of ResNet-50's 25,557,032."""
    assert 25_557_032 - 2048 * 1000 + 1 == 23_509_033
    assert count(ResNet(50, 1000, 1, last_layer="hadamard")) == 23_509_033
    assert count(WideResNet(16, 4, 10, 1, last_layer="orthonormal")) == 2_748_890 - 2560 + 1


def test_more_classes_than_features_are_refused():
    message = r"'hadamard' separates .* model.num_classes is 100 and there are 64 features"
    with pytest.raises(ValueError, match=message):
        count(WideResNet(10, 1, 100, 1, last_layer="hadamard"))
    with pytest.raises(ValueError, match="unknown model.last_layer 'fixed'; choose dense, hada"):
        count(WideResNet(10, 1, 10, 1, last_layer="fixed"))


def test_weight_decay_leaves_the_scale_alone():
    """With decay_on 'all' every other parameter is decayed, biases and norms too."""
    params = {"classifier": {"logit_scale": jnp.array(10.0), "bias": jnp.ones(3)}, "w": jnp.ones(2)}
    optimizer = make_optimizer("sgd", momentum=0.0, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, _ = optimizer.update(zeros, optimizer.init(params), params)
    expected = {"classifier": {"logit_scale": 0.0, "bias": 0.5 * np.ones(3)}, "w": 0.5 * np.ones(2)}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
