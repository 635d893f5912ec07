"""One update and one evaluation, against their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TinyNet

from batchgrow import steps
from batchgrow.optimizer import make_optimizer
from batchgrow.state import create_state

GHOST, SHAPE, CLASSES = 4, (2, 2, 1), 3
RATE = np.float32(0.3)
MODEL = TinyNet(num_classes=CLASSES, ghost_batch_size=GHOST)


def examples(*lead: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*lead, *SHAPE)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, CLASSES, lead).astype(np.int32)}


def prepare(batch, _):
    return batch["image"], batch["label"]


def new_state(optimizer: optax.GradientTransformation):
    return jax.device_get(create_state(MODEL, optimizer, SHAPE, seed=0))


def step(optimizer: optax.GradientTransformation, **options):
    bound = {"model": MODEL, "optimizer": optimizer, "prepare": prepare} | options
    return partial(steps.train_step, **bound)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def test_update_follows_the_mean_gradient_of_the_batch():
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.1)
    state, batch = new_state(optimizer), examples(8)
    trace = jax.tree.map(lambda w: np.full_like(w, 0.5), state.params)
    state = state.replace(
        opt_state=(state.opt_state[0], optax.TraceState(trace)),
        sums={"loss": np.float32(5), "correct": np.float32(1), "count": np.float32(9)},
    )

    def mean_loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = MODEL.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(state.params)
    direction = jax.tree.map(lambda g, w: 0.9 * 0.5 + g + 0.1 * w, gradient, state.params)
    expected = jax.tree.map(lambda w, d: w - RATE * d, state.params, direction)

    one_microbatch = jax.tree.map(lambda x: x[None], batch)
    after = jax.jit(step(optimizer))(state, one_microbatch, RATE, ())
    assert_close(after.params, expected)
    assert_close(after.opt_state[1].trace, direction)
    correct = np.sum(np.argmax(logits, -1) == batch["label"])
    assert_close(after.sums, {"loss": 5 + 8 * loss, "correct": 1 + correct, "count": 17})


def test_microbatches_make_the_same_update():
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.1)
    state, batch = new_state(optimizer), examples(12)
    one = jax.jit(step(optimizer))(state, {k: v[None] for k, v in batch.items()}, RATE, ())
    cut = {k: v.reshape(3, 4, *v.shape[1:]) for k, v in batch.items()}
    three = jax.jit(step(optimizer))(state, cut, RATE, ())
    assert_close(three, one)


@pytest.mark.parametrize("num_updates", [1, 2, 3])
def test_a_dispatch_makes_the_updates_it_is_told_to(num_updates):
    """Of 3 updates that it has room for, only the first `num_updates` count."""
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.0)
    state, batches = new_state(optimizer), examples(3, 1, 4)
    rates = np.array([0.1, 0.2, 0.3], np.float32)
    one = jax.jit(step(optimizer))
    expected = state
    for i in range(num_updates):
        expected = one(expected, {k: v[i] for k, v in batches.items()}, rates[i], ())
    together = jax.jit(partial(steps.train_steps, step(optimizer)))
    actual, token = together(state, batches, rates, np.int32(num_updates), ())
    assert_close(actual, expected)
    assert_close(token, expected.sums["loss"])


def test_evaluation_leaves_masked_examples_out():
    optimizer = make_optimizer("sgd", momentum=0.0, weight_decay=0.0)
    state, batch = new_state(optimizer), examples(6)
    evaluate = jax.jit(partial(steps.eval_step, model=MODEL, prepare=prepare))
    whole = evaluate(
        state.params,
        state.batch_stats,
        {k: v[:4] for k, v in batch.items()} | {"mask": np.ones(4, np.float32)},
        (),
    )
    batch["image"][4:] = np.nan  # padding may hold anything
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    assert_close(evaluate(state.params, state.batch_stats, batch | {"mask": mask}, ()), whole)
    assert whole["count"] == 4 and np.isfinite(whole["loss"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothed_labels(smoothing):
    logits = np.random.default_rng(0).normal(size=(5, CLASSES)).astype(np.float32)
    labels = np.array([0, 1, 2, 1, 0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(5), labels] - smoothing * log_p.mean(-1)
    actual = steps.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
