"""Ghost batch norm against flax's BatchNorm, closed forms, and itself on other layouts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.models import make_model
from batchgrow.models.dropout import apply
from batchgrow.models.ghost_batch_norm import GhostBatchNorm, devices_per_ghost

MOMENTUM, EPSILON, CHANNELS = 0.9, 1e-5, 3
AXIS = "devices"


def images(num_examples: int) -> jax.Array:
    drawn = np.random.default_rng(0).normal(2.0, 3.0, (num_examples, 4, 2, CHANNELS))
    return jnp.asarray(drawn, jnp.float32)


def variables() -> dict:
    """Neither scale 1 nor bias 0, and running statistics that are not the initial ones."""
    drawn = np.random.default_rng(1).uniform(0.5, 2.0, (4, CHANNELS)).astype(np.float32)
    return {
        "params": {"scale": drawn[0], "bias": drawn[1]},
        "batch_stats": {"mean": drawn[2], "var": drawn[3]},
    }


def ghost_norm(size: int, *, train: bool = True, axis_name=None, dtype=jnp.float32):
    return GhostBatchNorm(
        size, not train, axis_name, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype
    )


def forward_and_gradients(norm: nn.Module, x: jax.Array, weights: jax.Array) -> tuple:
    """Output, running statistics, and the gradients of a loss that weighs every output."""

    def loss(params, x):
        y, updated = norm.apply(variables() | {"params": params}, x, mutable=["batch_stats"])
        return jnp.sum(weights * jnp.sin(y)), (y, updated["batch_stats"])

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    gradients, outputs = gradient(variables()["params"], x)
    return (*outputs, *gradients)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), actual, expected
    )


def weights_like(x: jax.Array) -> jax.Array:
    return jnp.asarray(np.cos(np.arange(x.size)).reshape(x.shape), jnp.float32)


def test_one_ghost_is_flax_batch_norm():
    x = images(8)
    reference = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON)
    expected = forward_and_gradients(reference, x, weights_like(x))
    assert_close(forward_and_gradients(ghost_norm(8), x, weights_like(x)), expected)


def test_each_ghost_is_a_batch_norm_of_its_own():
    """Outputs and gradients of K ghosts are those of flax's BatchNorm, applied K times."""
    x = images(12)
    weights = weights_like(x)
    y, _, by_params, by_x = forward_and_gradients(ghost_norm(4), x, weights)
    reference = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON)
    by_ghost = (3, 4, *x.shape[1:])
    each = jax.vmap(lambda x, weights: forward_and_gradients(reference, x, weights))
    ys, _, parts, xs = each(x.reshape(by_ghost), weights.reshape(by_ghost))
    assert_close(y, ys.reshape(x.shape))
    assert_close(by_x, xs.reshape(x.shape))
    assert_close(by_params, jax.tree.map(lambda g: g.sum(0), parts), atol=1e-4)


def test_running_statistics_advance_once_per_ghost_in_order():
    x = np.asarray(images(20), np.float64)
    _, updated = ghost_norm(4).apply(variables(), jnp.asarray(x), mutable=["batch_stats"])
    mean, var = (np.float64(variables()["batch_stats"][k]) for k in ("mean", "var"))
    for ghost in x.reshape(5, -1, CHANNELS):
        mean = MOMENTUM * mean + (1 - MOMENTUM) * ghost.mean(0)
        var = MOMENTUM * var + (1 - MOMENTUM) * ghost.var(0)
    assert_close(updated["batch_stats"], {"mean": mean, "var": var})


@pytest.mark.parametrize("per_device", [2, 8, 16, 32])
def test_eight_devices_equal_one(per_device):
    """Ghosts of 16 shared by 8 or 2 devices, one on each, and two on each."""
    x = images(8 * per_device)
    weights = weights_like(x)
    expected = forward_and_gradients(ghost_norm(16), x, weights)

    def on_device(x, weights):
        y, stats, by_params, by_x = forward_and_gradients(
            ghost_norm(16, axis_name=AXIS), x, weights
        )
        return y, stats, jax.lax.psum(by_params, AXIS), by_x

    spread = (8, per_device, *x.shape[1:])
    y, stats, by_params, by_x = jax.pmap(on_device, AXIS, out_axes=(0, None, None, 0))(
        x.reshape(spread), weights.reshape(spread)
    )
    actual = y.reshape(x.shape), stats, by_params, by_x.reshape(x.shape)
    assert_close(actual, expected, atol=1e-4)


def test_statistics_of_bfloat16_inputs_are_float32():
    x = (images(16) + 30).astype(jnp.bfloat16)
    y, updated = ghost_norm(16, dtype=jnp.bfloat16).apply(variables(), x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(-1, CHANNELS)
    for name, new in (("mean", exact.mean(0)), ("var", exact.var(0))):
        running = updated["batch_stats"][name]
        assert running.dtype == jnp.float32
        expected = MOMENTUM * variables()["batch_stats"][name] + (1 - MOMENTUM) * new
        np.testing.assert_allclose(running, expected, rtol=1e-4)  # bfloat16 would be 4e-3 off


def test_momentum_of_the_running_statistics_is_a_field():
    x = images(8)
    for momentum in (0.5, 0.99):
        norm = GhostBatchNorm(8, False, momentum=momentum)
        _, updated = norm.apply(variables(), x, mutable=["batch_stats"])
        before = variables()["batch_stats"]["mean"]
        expected = momentum * before + (1 - momentum) * x.reshape(-1, CHANNELS).mean(0)
        assert_close(updated["batch_stats"]["mean"], expected)


@pytest.mark.parametrize(
    ("name", "fields", "side"),
    [
        ("conv_net", {"channels": 2}, 8),
        ("wide_resnet", {"depth": 10, "width": 1}, 8),
        ("resnet", {"depth": 18}, 32),
        pytest.param("inception_resnet_v2", {"num_blocks": (1, 1, 1)}, 75, marks=pytest.mark.slow),
    ],
)
def test_models_pass_the_momentum_on(name, fields, side):
    """From a running mean of zero, one ghost gives (1 - m) times its own mean."""
    inputs = jnp.asarray(np.random.default_rng(0).uniform(size=(2, side, side, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    faster, slower = (
        make_model(name, num_classes=3, ghost_batch_size=2, ghost_momentum=momentum, **fields)
        for momentum in (0.5, 0.9)
    )
    shapes = jax.eval_shape(partial(faster.init, train=False), keys[0], inputs)
    start = {
        "params": jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes["batch_stats"]),
    }

    @jax.jit
    def running_means() -> list[jax.Array]:
        """Of the first norm of each model: XLA leaves out what comes after it."""
        states = [apply(model, start, inputs, keys, train=True)[1] for model in (faster, slower)]
        return [state["batch_stats"]["GhostBatchNorm_0"]["mean"] for state in states]

    half, tenth = running_means()
    assert tenth.min() > 0.01
    np.testing.assert_allclose(half, 5 * tenth, rtol=1e-4)


def test_evaluation_uses_running_statistics_for_any_batch():
    x = images(7)  # no multiple of the ghost batch
    y, updated = ghost_norm(4, train=False).apply(variables(), x, mutable=["batch_stats"])
    params, stats = variables()["params"], variables()["batch_stats"]
    normalised = (np.asarray(x) - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
    assert_close(y, normalised * params["scale"] + params["bias"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)


@pytest.mark.parametrize(
    ("local", "ghost", "num_devices", "sharing"),
    [(32, 16, 1, 1), (16, 16, 8, 1), (4, 16, 8, 4), (2, 16, 8, 8), (48, 16, 3, 1)],
)
def test_devices_per_ghost(local, ghost, num_devices, sharing):
    assert devices_per_ghost(local, ghost, num_devices) == sharing


@pytest.mark.parametrize(
    ("local", "ghost", "num_devices"), [(12, 8, 1), (6, 16, 8), (4, 16, 2), (1, 16, 8), (24, 16, 1)]
)
def test_sizes_that_do_not_divide_are_refused_with_numbers(local, ghost, num_devices):
    message = f"ghost_batch_size {ghost}: {local} examples on each of {num_devices} devices"
    with pytest.raises(ValueError, match=message):
        devices_per_ghost(local, ghost, num_devices)


def test_layer_refuses_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="ghost_batch_size 8: 12 examples"):
        ghost_norm(8).apply(variables(), images(12), mutable=["batch_stats"])
