"""The regression task: squared errors, R^2 against scikit-learn, and a series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import r2_score

from batchgrow.models import MLP
from batchgrow.models.dropout import apply
from batchgrow.tasks.regression import Regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)


def total(outputs):
    sums = {"count": float(outputs.losses.size), "loss": float(outputs.losses.sum())}
    return sums | {name: float(values.sum()) for name, values in outputs.metrics.items()}


@pytest.mark.parametrize("num_outputs", [1, 11])
def test_metrics(num_outputs):
    """Sums over parts of the data give what scikit-learn computes at once."""
    y = (40 + 7 * RNG.normal(size=(12, num_outputs))).astype(np.float32)
    task = Regression(MLP((8,), num_outputs), mean=35.0, std=5.0)
    variables = task.init(jax.random.key(0), {"x": X[:1], "y": y[:1]})
    parts = [
        total(task.loss(variables, {"x": X[part], "y": y[part]}, None, train=False))
        for part in (slice(0, 5), slice(5, 12))
    ]
    metrics = task.summarize({name: parts[0][name] + parts[1][name] for name in parts[0]})
    assert list(metrics) == [metric.name for metric in task.metrics]
    predictions = 35 + 5 * np.asarray(task.model.apply(variables, X, train=False))
    mse = np.mean((predictions - y) ** 2)
    assert metrics["loss"] == pytest.approx(mse / 25, rel=1e-4)
    assert metrics["rmse"] == pytest.approx(np.sqrt(mse), rel=1e-4)
    r2 = r2_score(y, predictions, multioutput="variance_weighted")
    assert metrics["r2"] == pytest.approx(r2, rel=1e-3)


def test_r2_of_a_constant_target_is_nan():
    task = Regression(MLP((), 1))
    assert np.isnan(task.summarize({"count": 2.0, "loss": 1.0, "z_0": 2.0, "z_squared": 2.0})["r2"])


def test_learns_a_series():
    """y is the mean of each channel over time; a linear model finds it."""
    x = RNG.normal(size=(64, 5, 2)).astype(np.float32)
    examples = {"x": x, "y": x.mean(1)}
    task = Regression(MLP((), 2))
    params = task.init(jax.random.key(0), {"x": x[:1], "y": x[:1, 0]})["params"]

    def mean_loss(params):
        return task.loss({"params": params}, examples, None, train=True).losses.mean()

    step = jax.jit(lambda p: jax.tree.map(lambda w, g: w - 0.3 * g, p, jax.grad(mean_loss)(p)))
    for _ in range(200):
        params = step(params)
    sums = total(task.loss({"params": params}, examples, None, train=False))
    assert task.summarize(sums)["r2"] > 0.999


def test_wrong_number_of_outputs_is_refused():
    task = Regression(MLP((), 2))
    examples = {"x": X, "y": np.zeros((12, 1), np.float32)}
    variables = task.init(jax.random.key(0), examples)
    with pytest.raises(ValueError, match=r"outputs are \(12, 2\) and y is \(12, 1\)"):
        task.loss(variables, examples, None, train=False)


def test_mlp_counts_by_hand_and_drops_hidden_units():
    model = MLP((7, 5), 2, dropout=0.5)
    variables = model.init(jax.random.key(0), X, train=False)
    sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
    assert sum(sizes) == (3 * 7 + 7) + (7 * 5 + 5) + (5 * 2 + 2)
    keys = jax.random.split(jax.random.key(0), 12)
    trained, _ = apply(model, variables, X, keys, train=True)
    part, _ = apply(model, variables, X[4:], keys[4:], train=True)
    np.testing.assert_allclose(trained[4:], part, rtol=1e-5, atol=1e-6)
    assert jnp.abs(trained - model.apply(variables, X, train=False)).max() > 0.01
