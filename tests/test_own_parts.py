"""One's own model, optimizer, curve and task, by name."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx as flax_nnx
from ml_collections import ConfigDict
from own import ARRAYS, make_config, train_twice

from batchgrow.config import make_experiment, make_plan
from batchgrow.models import GhostBatchNorm, make_model, nnx
from batchgrow.models.dropout import apply, masks_by_example
from batchgrow.tasks import Metric, Outputs

ROOT = pathlib.Path(__file__).parents[1]
HERE = "test_own_parts"


def fixed(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initial values that depend on the shape alone."""
    del key
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape) * 0.3, dtype)


class LinenNet(nn.Module):
    outputs: int
    ghost_batch_size: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(8, kernel_init=fixed)(x.reshape(x.shape[0], -1))
        x = GhostBatchNorm(self.ghost_batch_size, not train, self.axis_name)(x)
        return nn.Dense(self.outputs, kernel_init=fixed)(nn.relu(x))


class NNXNet(flax_nnx.Module):
    def __init__(self, inputs: int, outputs: int, ghost_batch_size: int, *, axis_name=None, rngs):
        linear = [(inputs, 8), (8, outputs)]
        self.layers = flax_nnx.List(
            [flax_nnx.Linear(*sizes, kernel_init=fixed, rngs=rngs) for sizes in linear]
        )
        self.norm = nnx.GhostBatchNorm(
            8, ghost_batch_size=ghost_batch_size, axis_name=axis_name, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.layers[0](x.reshape(x.shape[0], -1)))
        return self.layers[1](flax_nnx.relu(x))


class WithDropout(flax_nnx.Module):
    def __init__(self, rate: float, of_flax: bool = False, *, rngs):
        self.linear = flax_nnx.Linear(4, 4, rngs=rngs)
        make = flax_nnx.Dropout if of_flax else nnx.Dropout
        self.drop = make(rate, rngs=rngs) if of_flax else make(rate)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.drop(self.drop(self.linear(x)) + 1)


def test_batch_norm_of_nnx_is_refused():
    """Its statistics would differ between devices."""

    class Net(flax_nnx.Module):
        def __init__(self, *, rngs):
            self.norm = flax_nnx.BatchNorm(4, rngs=rngs)

    with pytest.raises(ValueError, match="norm is nnx.BatchNorm, .*: use batchgrow.models.nnx.Gh"):
        nnx.NNXModel(Net)


@pytest.mark.parametrize("batch", [4, 16])
def test_ghost_batch_norm_of_nnx_has_equal_bits(batch):
    x = jax.random.normal(jax.random.key(0), (batch, 3, 5)) * 2 + 1
    linen = GhostBatchNorm(4, use_running_average=False)
    variables = linen.init(jax.random.key(1), x)
    module = nnx.GhostBatchNorm(5, ghost_batch_size=4, rngs=flax_nnx.Rngs(0))
    expected, updated = linen.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(module(x), expected)
    for name, value in updated["batch_stats"].items():
        np.testing.assert_array_equal(getattr(module, name)[...], value)
    module.eval()
    evaluating = GhostBatchNorm(4, use_running_average=True)
    np.testing.assert_array_equal(module(x), evaluating.apply(variables | updated, x))


@pytest.mark.parametrize("num_devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_nnx_model_is_trained_as_the_linen_model_is(num_devices, tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    rows = {}
    for name in ("LinenNet", "NNXNet"):
        changes = {
            "data.test_share": 0.25,
            "ghost_batch_size": 2,
            "run.num_devices": num_devices,
            "model": ConfigDict({"name": f"{HERE}:{name}"}),
        }
        if name == "NNXNet":
            changes["model.inputs"] = 25
        _, rows[name] = train_twice(make_config(f"{tmp_path}/a.npz", changes), tmp_path / name)
    for metric in ("train_loss", "test_loss", "test_accuracy"):
        assert rows["NNXNet"][metric] == rows["LinenNet"][metric]


def test_masks_of_nnx_dropout_depend_on_the_examples_alone():
    model = make_model(f"{HERE}:WithDropout", rate=0.5)
    variables = model.init(jax.random.key(0), None)
    x, keys = jnp.ones((8, 4)), jax.random.split(jax.random.key(1), 8)
    whole, _ = apply(model, variables, x, keys, train=True)
    halves = [
        apply(model, variables, x[h], keys[h], train=True)[0] for h in (slice(4), slice(4, 8))
    ]
    np.testing.assert_allclose(whole, jnp.concatenate(halves), rtol=1e-5)
    np.testing.assert_array_equal(whole == 0, jnp.concatenate(halves) == 0)
    assert 0 < (whole == 0).mean() < 1
    other, _ = apply(model, variables, x, jax.random.split(jax.random.key(2), 8), train=True)
    assert (other != whole).any()
    with masks_by_example(keys):
        first, second = (nnx.Dropout(0.5)(jnp.ones((8, 100))) for _ in range(2))
    assert (first != second).mean() == pytest.approx(0.5, abs=0.1)  # layers draw for themselves
    evaluated, _ = apply(model, variables, x, None, train=False)
    assert (evaluated != 0).all()
    with pytest.raises(ValueError, match="variable drop.rngs.count .* batchgrow.models.nnx.Dropo"):
        make_model(f"{HERE}:WithDropout", rate=0.5, of_flax=True)


def test_only_a_model_with_batch_norm_is_asked_for_a_ghost_batch():
    make_model("mlp", features=(8,), outputs=2)
    for name in ("LinenNet", "NNXNet"):
        with pytest.raises(ValueError, match=f"ghost_batch_size is not set, but .*{name} has"):
            make_model(f"{HERE}:{name}", outputs=2)


def my_optimizer(momentum: float, scale: float = 2.0) -> optax.GradientTransformation:
    return optax.chain(optax.trace(decay=momentum), optax.scale(scale / 2.0))


def my_sign(weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_sign())


def not_an_optimizer(momentum: float) -> float:
    return momentum


def my_curve(learning_rate: float, num_epochs: float):
    return lambda epoch: learning_rate * (0.5 if epoch >= num_epochs / 2 else 1.0)


def test_an_optimizer_and_a_curve_of_ones_own(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    rows = []
    for optimizer, curve in (("momentum", "step"), (f"{HERE}:my_optimizer", f"{HERE}:my_curve")):
        changes = {
            "data.test_share": 0.25,
            "optimizer.name": optimizer,
            "recipe.curve": curve,
        }
        config = make_config(f"{tmp_path}/a.npz", changes)
        rows.append(train_twice(config, tmp_path / optimizer.replace(":", "_"))[1])
    assert rows[0]["learning_rate"] == rows[1]["learning_rate"]
    assert rows[0]["test_loss"] == pytest.approx(rows[1]["test_loss"], rel=1e-6)


def test_an_optimizer_without_momentum_has_a_recipe_without():
    plan = make_plan(make_config("", {"optimizer.name": f"{HERE}:my_sign"}), 100)
    assert plan.recipe.momentum == 0
    changes = {"optimizer.name": f"{HERE}:my_sign", "plan.momentum": 0.5}
    with pytest.raises(ValueError, match="has no momentum"):
        make_plan(make_config("", changes), 100)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.name", f"{HERE}:not_an_optimizer", "returns a float; return an optax.Gradient"),
        ("optimizer.name", f"{HERE}:absent", "optimizer.name .* cannot be imported"),
        ("optimizer.name", f"{HERE}:fixed", "needs key, shape; add a field of this name"),
        ("recipe.curve", f"{HERE}:absent", "recipe.curve .* cannot be imported"),
        ("recipe.curve", ".relative:curve", "recipe.curve .* cannot be imported"),
        ("recipe.curve", f"{HERE}:constant_number", "returns a float; return a function from"),
    ],
)
def test_wrong_functions(field, value, message, tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(ValueError, match=message):
        make_experiment(make_config(f"{tmp_path}/a.npz", {"data.test_share": 0.25, field: value}))


def constant_number(learning_rate: float) -> float:
    return learning_rate


def test_weight_decay_is_not_dropped_silently(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    changes = {
        "data.test_share": 0.25,
        "optimizer.name": f"{HERE}:my_optimizer",
        "optimizer.weight_decay": 0.1,
    }
    with pytest.raises(ValueError, match="weight_decay is 0.1, but .* has no argument w"):
        make_experiment(make_config(f"{tmp_path}/a.npz", changes))


class Mean:
    """A task without a Flax module: the mean of x."""

    metrics = (Metric("loss", "lower"),)

    def __init__(self, start: float = 0.0):
        self.start = start

    def init(self, key, examples):
        return {"params": {"mean": jnp.full(examples["x"].shape[1:], self.start)}}

    def loss(self, variables, examples, keys, *, train):
        losses = jnp.square(examples["x"] - variables["params"]["mean"][None]).mean(1)
        return Outputs(losses, {}, {})

    def summarize(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


def test_a_task_of_ones_own_needs_no_model(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((40, 2), 3.0))
    changes = {"data.test_share": 0.25, "model": ConfigDict({"name": ""})}
    config = make_config(f"{tmp_path}/a.npz", changes, f"{HERE}:Mean")
    config.task.start = 2.5
    _, row = train_twice(config, tmp_path / "run")
    assert row["test_loss"] < 0.25


def downhill(momentum: float) -> optax.GradientTransformation:
    return optax.adamw(1e-3, b1=momentum)


def test_an_optimizer_with_a_learning_rate_is_refused():
    config = tiny.make_config(
        {
            "optimizer.name": f"{__name__}:downhill",
            "plan.exponent": 1.0,
            "optimizer.weight_decay": 0.0,
        }
    )
    with pytest.raises(ValueError, match="already has a learning rate"):
        make_experiment(config)


class WithoutTrain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_linen_model_without_train_is_refused():
    config = tiny.make_config({"model.name": f"{__name__}:WithoutTrain"})
    del config.model["num_classes"], config.model["dtype"]
    with pytest.raises(ValueError, match="__call__ has no argument `train`"):
        make_experiment(config)
