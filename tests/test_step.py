"""One update and one evaluation, against their definitions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TinyNet

from batchgrow import step
from batchgrow.optimizer import make_optimizer
from batchgrow.step import TrainState, create_state
from batchgrow.tasks.classification import Classification

GHOST, SHAPE, CLASSES = 4, (2, 2, 1), 3
RATE = np.float32(0.3)
MODEL = TinyNet(num_classes=CLASSES, ghost_batch_size=GHOST)
TASK = Classification(MODEL, CLASSES, mean=(0.0,), std=(1.0,))


def make_batch(*lead: int) -> dict[str, Any]:
    """Images and labels by position, as the host sends them."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*lead, *SHAPE)).astype(np.float32)
    label = rng.integers(0, CLASSES, lead).astype(np.int32)
    position = np.arange(image.size // 4, dtype=np.uint32).reshape(lead)
    return {"examples": {"image": image, "label": label}, "position": position}


def new_state(optimizer: optax.GradientTransformation, **options: Any) -> TrainState:
    example = jax.tree.map(lambda x: np.zeros_like(x), make_batch(1)["examples"])
    return jax.device_get(create_state(TASK, optimizer, example, seed=0, **options))


def make_update(optimizer: optax.GradientTransformation, **options: Any) -> Any:
    bound = {
        "task": TASK,
        "optimizer": optimizer,
        "examples": lambda batch, _: batch["examples"],
        "seed": 0,
    }
    return partial(step.update, **(bound | options))


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def test_devices_together_sum_the_metrics_of_the_whole_batch():
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.1)
    state, batch = new_state(optimizer), make_batch(2 * GHOST)
    alone = jax.tree.map(lambda x: x.reshape(2, GHOST, *x.shape[1:]), batch)
    split = jax.tree.map(lambda x: x[:, None], alone)  # (devices, 1 micro-batch, examples, ...)
    model = TinyNet(num_classes=CLASSES, ghost_batch_size=GHOST, axis_name="devices")
    task = Classification(model, CLASSES, mean=(0.0,), std=(1.0,))
    on_two = make_update(optimizer, task=task, axis_name="devices")
    on_two = jax.vmap(on_two, in_axes=(None, 0, None, None), axis_name="devices")
    expected = jax.jit(make_update(optimizer))(state, alone, RATE, ())
    for i in range(2):
        after = jax.tree.map(lambda x, i=i: x[i], jax.jit(on_two)(state, split, RATE, ()))
        assert_close(after.sums, expected.sums)
        assert_close(after.params, expected.params)


def test_update_follows_the_mean_gradient_of_the_batch():
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.1)
    state, batch = new_state(optimizer), make_batch(8)
    trace = jax.tree.map(lambda w: np.full_like(w, 0.5), state.params)
    state = state.replace(
        opt_state=(state.opt_state[0], optax.TraceState(trace)),
        sums={"loss": np.float32(5), "correct": np.float32(1), "count": np.float32(9)},
    )
    images, labels = batch["examples"]["image"], batch["examples"]["label"]

    def mean_loss(params):
        variables = {"params": params, **state.model_state}
        logits, _ = MODEL.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(state.params)
    direction = jax.tree.map(lambda g, w: 0.9 * 0.5 + g + 0.1 * w, gradient, state.params)
    expected = jax.tree.map(lambda w, d: w - RATE * d, state.params, direction)

    one_microbatch = jax.tree.map(lambda x: x[None], batch)
    after = jax.jit(make_update(optimizer))(state, one_microbatch, RATE, ())
    assert_close(after.params, expected)
    assert_close(after.opt_state[1].trace, direction)
    correct = np.sum(np.argmax(logits, -1) == labels)
    assert_close(after.sums, {"loss": 5 + 8 * loss, "correct": 1 + correct, "count": 17})
    assert after.average is None


def test_microbatches_make_the_same_update():
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.1)
    state, batch = new_state(optimizer), make_batch(12)
    update = jax.jit(make_update(optimizer))
    one = update(state, jax.tree.map(lambda x: x[None], batch), RATE, ())
    cut = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), batch)
    assert_close(update(state, cut, RATE, ()), one)


@pytest.mark.parametrize("num_updates", [1, 2, 3])
def test_a_dispatch_makes_the_updates_it_is_told_to(num_updates):
    """Of 3 updates that it has room for, only the first `num_updates` count."""
    optimizer = make_optimizer("momentum", momentum=0.9, weight_decay=0.0)
    state, batches = new_state(optimizer), make_batch(3, 1, 4)
    rates = np.array([0.1, 0.2, 0.3], np.float32)
    one = jax.jit(make_update(optimizer))
    expected = state
    for i in range(num_updates):
        batch = jax.tree.map(lambda x, i=i: x[i], batches)
        expected = one(expected, batch, rates[i], ())
    together = jax.jit(partial(step.updates, update=make_update(optimizer)))
    actual, token = together(state, batches, rates, np.int32(num_updates), ())
    assert_close(actual, expected)
    assert_close(token, expected.sums["loss"])


def test_average_of_the_parameters_is_evaluated():
    """average <- d average + (1 - d) w after each update, from the initial parameters on."""
    optimizer = make_optimizer("sgd", momentum=0.0, weight_decay=0.0)
    state = new_state(optimizer, averages=True)
    assert_close(state.average, state.params, rtol=0, atol=0)
    update = jax.jit(make_update(optimizer, average_decay=0.75))
    expected = state.average
    for i in range(3):
        state = update(state, make_batch(1, 4 * (i + 1)), RATE, ())
        expected = jax.tree.map(lambda a, w: 0.75 * a + 0.25 * w, expected, state.params)
        assert_close(state.average, expected)
    assert state.evaluated["params"] is state.average
    assert new_state(optimizer).evaluated.keys() == {"params", "batch_stats"}


class Keys(Classification):
    """Adds up bits of each example's key."""

    def loss(self, variables, examples, keys, *, train):
        outputs = super().loss(variables, examples, keys, train=train)
        shape = examples["label"].shape
        bits = jnp.zeros(shape) if keys is None else jax.vmap(jax.random.uniform)(keys)
        return outputs._replace(metrics={"bits": bits})


def test_no_array_is_in_the_state_twice():
    """It is donated. Some optimizers begin with the parameters."""
    anchored = optax.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, s))
    example = jax.tree.map(lambda x: x[:1], make_batch(1)["examples"])
    state = create_state(TASK, anchored, example, seed=0)
    gone = jax.jit(lambda state: state, donate_argnums=0)(state)
    same = jax.tree.map(np.array_equal, gone.params, gone.opt_state)
    assert all(jax.tree.leaves(same))


def test_parameters_of_another_type_are_refused():
    class Half(Classification):
        def init(self, key, examples):
            variables = dict(super().init(key, examples))
            half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
            return variables | {"params": half}

    example = jax.tree.map(lambda x: x[:1], make_batch(1)["examples"])
    with pytest.raises(
        ValueError, match=r"the parameter .* is bfloat16; keep parameters in float32"
    ):
        create_state(Half(MODEL, CLASSES), optax.identity(), example, seed=0)


def test_keys_depend_on_seed_and_position_alone():
    """Also beyond 2^16 and 2^31, and not on micro-batches or what else is in the batch."""
    task = Keys(MODEL, CLASSES)
    optimizer = make_optimizer("sgd", momentum=0.0, weight_decay=0.0)
    example = jax.tree.map(lambda x: x[:1], make_batch(1)["examples"])
    state = jax.device_get(create_state(task, optimizer, example, seed=0))

    update = [jax.jit(make_update(optimizer, task=task, seed=seed)) for seed in (0, 1)]

    def bits(positions, num_microbatches=1, seed=0):
        batch = jax.tree.map(
            lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]),
            make_batch(len(positions)) | {"position": np.array(positions, np.uint32)},
        )
        return float(update[seed](state, batch, RATE, ()).sums["bits"])

    positions = [7 + 4 * 2**power for power in (0, 16, 24, 29)]
    each = [bits([p] * GHOST) / GHOST for p in positions]
    assert len({round(value, 4) for value in each}) == 4
    assert bits(positions) == pytest.approx(sum(each), rel=1e-5)
    assert bits(positions[::-1] * 2, 2) == pytest.approx(2 * sum(each), rel=1e-5)
    assert bits(positions, seed=1) != pytest.approx(sum(each), rel=1e-2)


def test_evaluation_leaves_masked_examples_out():
    optimizer = make_optimizer("sgd", momentum=0.0, weight_decay=0.0)
    variables, examples = new_state(optimizer).evaluated, make_batch(6)["examples"]
    evaluate = jax.jit(partial(step.evaluate, task=TASK))
    four = jax.tree.map(lambda x: x[:4], examples)
    whole = evaluate(variables, {"examples": four, "mask": np.ones(4, np.float32)})
    examples["image"][4:] = np.nan  # padding may hold anything
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    assert_close(evaluate(variables, {"examples": examples, "mask": mask}), whole)
    assert whole["count"] == 4 and np.isfinite(whole["loss"])
