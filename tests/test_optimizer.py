"""Each optimizer against its published update, written out in numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import assert_close, run_experiment, run_tiny, tiny_experiment

from batchgrow.data.catalog import load_images
from batchgrow.engine import Engine
from batchgrow.layout import make_mesh
from batchgrow.optimizer import (
    OPTIMIZERS,
    kernels,
    make_optimizer,
    matrices,
    optimizer_by_batch,
)
from batchgrow.plan.coupling import COUPLINGS

M, B2, EPS, DECAY = 0.9, 0.99, 1e-3, 0.1
STEPS = 6


def start() -> dict:
    """A kernel, a bias and batch norm's scale."""
    rng = np.random.default_rng(0)
    return {
        "dense": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)},
        "norm": {"scale": rng.normal(size=2)},
    }


def gradients() -> list[dict]:
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda p: rng.normal(size=p.shape), start()) for _ in range(STEPS)]


def directions(name: str, **changes) -> list[dict]:
    """What the chain returns for the gradients above at fixed parameters."""
    options = {"momentum": M, "weight_decay": 0.0, "b2": B2, "rmsprop_decay": B2}
    options |= {"epsilon": EPS} | changes
    optimizer = make_optimizer(name, **options)
    params = jax.tree.map(jnp.float32, start())
    state, found = optimizer.init(params), []
    for gradient in gradients():
        direction, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
        found.append(direction)
    return found


def closed_form(name: str, g: list[np.ndarray]) -> np.ndarray:
    """The direction after all of the gradients `g`, from the sums in the papers."""
    k = len(g)
    powers = [M ** (k - 1 - i) for i in range(k)]
    mean = sum(p * x for p, x in zip(powers, g, strict=True))  # A <- m A + g
    squares = [B2 ** (k - 1 - i) * g[i] ** 2 for i in range(k)]
    match name:
        case "sgd":
            return g[-1]
        case "momentum":
            return mean
        case "nesterov":
            return g[-1] + M * mean
        case "adam":
            first = (1 - M) * mean / (1 - M**k)
            second = (1 - B2) * sum(squares) / (1 - B2**k)
            return first / (np.sqrt(second) + EPS)
        case "rmsprop":
            return g[-1] / (np.sqrt((1 - B2) * sum(squares)) + EPS)
        case "adagrad":
            return g[-1] / (np.sqrt(sum(x**2 for x in g)) + EPS)
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "rmsprop", "adagrad"])
def test_direction_is_the_published_one(name):
    expected = jax.tree.map(lambda *g: closed_form(name, list(g)), *gradients())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), directions(name)[-1], expected
    )


def test_adam_times_learning_rate_is_optax_adam():
    reference = optax.adam(0.01, b1=M, b2=B2, eps=EPS)
    state = reference.init(start())
    for gradient, direction in zip(gradients(), directions("adam"), strict=True):
        update, state = reference.update(gradient, state)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(-0.01 * a, b, rtol=1e-4), direction, update
        )


def test_changing_the_learning_rate_needs_no_correction():
    """w <- w - lr_t A_t with A <- m A + g, lr changing at every update (Goyal et al. 2017, (9))."""
    rates = [0.1, 0.1, 0.5, 0.5, 0.02, 0.02]
    w = start()["dense"]["kernel"]
    for rate, direction in zip(rates, directions("momentum"), strict=True):
        w = w - rate * np.asarray(direction["dense"]["kernel"])
    g = [gradient["dense"]["kernel"] for gradient in gradients()]
    expected = start()["dense"]["kernel"] - sum(
        rates[t] * sum(M ** (t - i) * g[i] for i in range(t + 1)) for t in range(STEPS)
    )
    np.testing.assert_allclose(w, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_weight_decay_is_added_to_the_gradient(name):
    """Coupled L2: the same as adding lambda * w to every gradient, before any accumulation."""
    decayed = [jax.tree.map(lambda g, w: g + DECAY * w, g, start()) for g in gradients()]
    expected = jax.tree.map(lambda *g: closed_form(name, list(g)), *decayed)
    actual = directions(name, weight_decay=DECAY)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), actual, expected)


def test_decay_on_kernels_spares_batch_norm_and_biases():
    plain = directions("sgd")[-1]
    spared = directions("sgd", weight_decay=DECAY, decay_on="kernels")[-1]
    kernel = start()["dense"]["kernel"]
    np.testing.assert_allclose(
        spared["dense"]["kernel"], plain["dense"]["kernel"] + DECAY * kernel, rtol=1e-5
    )
    np.testing.assert_array_equal(spared["dense"]["bias"], plain["dense"]["bias"])
    np.testing.assert_array_equal(spared["norm"]["scale"], plain["norm"]["scale"])
    assert kernels(start()) == {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False}}


def test_lars_trusts_kernels_by_their_norms():
    trust = 0.02
    actual = directions("lars", weight_decay=DECAY, trust_coefficient=trust)[0]
    g, w = gradients()[0], start()
    regularised = jax.tree.map(lambda g, w: g + DECAY * w, g, w)
    step = regularised["dense"]["kernel"]
    ratio = trust * np.linalg.norm(w["dense"]["kernel"]) / np.linalg.norm(step)
    np.testing.assert_allclose(actual["dense"]["kernel"], ratio * step, rtol=1e-5)
    np.testing.assert_allclose(actual["dense"]["bias"], regularised["dense"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(actual["norm"]["scale"], regularised["norm"]["scale"], rtol=1e-5)


def test_lars_accumulates_steps_of_trusted_length():
    """A <- m A + c |w| / |g| g: the trust ratio is that of each gradient, not that of their sum."""
    trust, w = 0.02, start()["dense"]["kernel"]
    steps = [
        trust * np.linalg.norm(w) / np.linalg.norm(g["dense"]["kernel"]) * g["dense"]["kernel"]
        for g in gradients()
    ]
    expected = sum(M ** (STEPS - 1 - i) * step for i, step in enumerate(steps))
    actual = directions("lars", trust_coefficient=trust)[-1]["dense"]["kernel"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_lamb_trusts_kernels_by_their_norms():
    actual = directions("lamb", weight_decay=DECAY)[-1]
    w = start()
    adam = jax.tree.map(lambda *g: closed_form("adam", list(g)), *gradients())
    step = jax.tree.map(lambda a, w: a + DECAY * w, adam, w)
    kernel = step["dense"]["kernel"]
    ratio = np.linalg.norm(w["dense"]["kernel"]) / np.linalg.norm(kernel)
    np.testing.assert_allclose(actual["dense"]["kernel"], ratio * kernel, rtol=2e-5)
    np.testing.assert_allclose(actual["dense"]["bias"], step["dense"]["bias"], rtol=2e-5)


@pytest.mark.parametrize(("name", "trust"), [("lars", 0.001), ("lamb", 1.0)])
def test_every_matrix_has_a_trust_ratio_whatever_its_name(name, trust):
    """And biases have none, also those of several heads."""
    matrix = np.float32([[3.0, 4.0], [0.0, 0.0]])
    params = {"embedding": matrix, "bias": 2 * matrix}
    chain = make_optimizer(name, momentum=M, weight_decay=0.0)
    direction, _ = chain.update({k: matrix for k in params}, chain.init(params), params)
    assert np.linalg.norm(direction["embedding"]) == pytest.approx(trust * 5.0, rel=1e-4)
    plain = 5.0 if name == "lars" else math.sqrt(2)  # the gradient, or its signs
    assert np.linalg.norm(direction["bias"]) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_matters_where_it_is_said_to(name):
    last = [directions(name, momentum=m)[-1]["dense"]["bias"] for m in (0.5, 0.9)]
    assert np.allclose(last[0], last[1]) != COUPLINGS[name].uses_momentum


@pytest.mark.parametrize("gradient", [2.0, -0.5])
def test_adamw_decays_beside_adams_step(gradient):
    """With a constant gradient Adam's step is s = g / (|g| + epsilon), so that

    w_k = (w_0 + s / lambda) (1 - learning_rate lambda)^k - s / lambda.
    """
    rate, start = 0.05, np.array([3.0, -1.0, 0.0])
    optimizer = make_optimizer("adamw", momentum=M, weight_decay=DECAY, b2=B2, epsilon=EPS)
    w = jnp.float32(start)
    state = optimizer.init(w)
    for _ in range(STEPS):
        direction, state = optimizer.update(jnp.full(3, gradient), state, w)
        w = w - rate * direction
    s = gradient / (abs(gradient) + EPS)
    expected = (start + s / DECAY) * (1 - rate * DECAY) ** STEPS - s / DECAY
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    coupled = directions("adam", weight_decay=DECAY)[-1]["dense"]["kernel"]
    assert not np.allclose(directions("adamw", weight_decay=DECAY)[-1]["dense"]["kernel"], coupled)


def test_adamw_is_optax_adamw():
    reference = optax.adamw(0.01, b1=M, b2=B2, eps=EPS, weight_decay=DECAY)
    params = jax.tree.map(jnp.float32, start())
    state = reference.init(params)
    for gradient, direction in zip(
        gradients(), directions("adamw", weight_decay=DECAY), strict=True
    ):
        update, state = reference.update(jax.tree.map(jnp.float32, gradient), state, params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(-0.01 * a, b, rtol=1e-4), direction, update
        )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_on_matrices_spares_vectors_and_includes_embeddings(name):
    params = {
        "token": {"embedding": np.ones((4, 3))},
        "norm": {"scale": np.ones(3)},
        "dense": {"kernel": np.ones((3, 2)), "bias": np.ones(2)},
        "conv": {"kernel": np.ones((3, 3, 2, 2))},
    }
    decayed = {
        "token": {"embedding": True},
        "norm": {"scale": False},
        "dense": {"kernel": True, "bias": False},
        "conv": {"kernel": True},
    }
    assert matrices(params) == decayed
    optimizer = make_optimizer(
        name, momentum=M, weight_decay=DECAY, decay_on="matrices", b2=B2, epsilon=EPS
    )
    params = jax.tree.map(jnp.float32, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    direction, _ = optimizer.update(zeros, optimizer.init(params), params)
    jax.tree.map(
        lambda d, is_decayed: np.testing.assert_allclose(d, DECAY * is_decayed, rtol=1e-6),
        direction,
        decayed,
    )


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_clipping_scales_the_whole_gradient_before_anything_else(name, clip_norm):
    """To the norm over all parameters together; weight decay is not clipped."""
    clipped = []
    for gradient in gradients():
        norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradient)))
        scale = min(1.0, clip_norm / norm)
        clipped.append(
            jax.tree.map(lambda g, w, scale=scale: scale * g + DECAY * w, gradient, start())
        )
    expected = jax.tree.map(lambda *g: closed_form(name, list(g)), *clipped)
    actual = directions(name, weight_decay=DECAY, clip_norm=clip_norm)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), actual, expected)
    unclipped = directions(name, weight_decay=DECAY)[-1]["dense"]["kernel"]
    assert np.allclose(actual["dense"]["kernel"], unclipped) is (clip_norm == 1e6)


@pytest.mark.slow
def test_the_average_has_a_horizon_in_examples(tmp_path):
    """Across a growth from 32 to 128. After e examples, with w_i after e_i, batches b_i, h = a N:

    average = exp(-e / h) w_0 + sum_i (1 - exp(-b_i / h)) exp(-(e - e_i) / h) w_i.
    """
    epochs = 0.2
    experiment = tiny_experiment(
        {"optimizer.average_epochs": epochs, "run.updates_per_dispatch": 1}
    )
    with Engine(experiment, make_mesh(1)) as engine:
        initial = jax.tree.map(np.array, engine.initial_state())
    trained = run_experiment(experiment, tmp_path)
    end, horizon = max(trained.states), epochs * 1437
    assert len(trained.states) == 14
    expected = jax.tree.map(lambda w: math.exp(-end / horizon) * w, initial.params)
    for before, seen in itertools.pairwise([0, *sorted(trained.states)]):
        new = 1 - math.exp(-(seen - before) / horizon)
        weight = new * math.exp(-(end - seen) / horizon)
        params = trained.states[seen].params
        expected = jax.tree.map(lambda a, w, weight=weight: a + weight * w, expected, params)
    assert_close(trained.states[end].average, expected)
    plain = run_tiny(tmp_path / "plain", {"run.updates_per_dispatch": 1})
    assert_close(trained.states[end].params, plain.states[end].params)

    # The average is what is evaluated, with the running statistics of the parameters.
    variables = {"params": expected, **trained.states[end].model_state}
    test = load_images("digits", "test").arrays
    losses = experiment.task.loss(variables, test, None, train=False).losses
    assert trained.rows[-1]["test_loss"] == pytest.approx(float(losses.mean()), rel=1e-4)
    assert plain.rows[-1]["test_loss"] != pytest.approx(float(losses.mean()), rel=1e-2)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown optimizer.name 'adamax'; choose sgd, momentum"):
        make_optimizer("adamax", momentum=M, weight_decay=0.0)
    with pytest.raises(ValueError, match="unknown optimizer.decay_on 'bias'; choose all, kernels"):
        make_optimizer("sgd", momentum=M, weight_decay=0.0, decay_on="bias")
    with pytest.raises(ValueError, match="optimizer.clip_norm 0.0 must be above 0, or None"):
        make_optimizer("sgd", momentum=M, weight_decay=0.0, clip_norm=0.0)
    with pytest.raises(ValueError, match="debias_momentum: 'adam' does not need it"):
        make_optimizer("adam", momentum=M, weight_decay=0.0, debias_momentum=True)


def test_the_decay_of_a_config_follows_the_batch():
    """AdamW with lr ~ sqrt(B): on a gradient of 0, 4 times the batch decays twice as fast."""
    changes = {"optimizer.name": "adamw", "optimizer.weight_decay": DECAY, "plan.exponent": 0.5}
    experiment = tiny_experiment(changes)
    w = jnp.float32([3.0, -1.0])
    for size, growth in ((32, 1), (128, 4)):
        optimizer = experiment.optimizer_at(size)
        direction, _ = optimizer.update(jnp.zeros(2), optimizer.init(w), w)
        np.testing.assert_allclose(direction, math.sqrt(growth) * DECAY * w, rtol=1e-6)


def test_rates_of_forgetting_follow_the_batch():
    """The first direction, from a gradient of 1, at 4 and at 64 times the batch."""
    fields = {"batch_size": 16, "exponent": 0.5, "momentum": M, "weight_decay": 0.0, "b2": 0.999}
    fields |= {"betas_follow_batch": True, "b2_floor": 0.99}
    w = jnp.zeros(())

    def first(name, size, **changes):
        optimizer = optimizer_by_batch(name, **fields | changes)(size)
        return optimizer.update(jnp.ones(()), optimizer.init(w), w)

    _, state = first("adam", 64)
    mu, nu = (optax.tree_utils.tree_get(state, name) for name in ("mu", "nu"))
    assert float(mu) == pytest.approx(1 - M**4)
    assert float(nu) == pytest.approx(1 - 0.999**4, rel=1e-4)
    _, state = first("adam", 16 * 64)
    mu, nu = (optax.tree_utils.tree_get(state, name) for name in ("mu", "nu"))
    assert (float(mu), float(nu)) == pytest.approx((0.5, 0.01), rel=1e-4)  # the floors
    # Bias correction makes both averages 1, and epsilon is a half.
    assert float(first("adam", 64, epsilon=1.0)[0]) == pytest.approx(1 / (1 + 0.5), rel=1e-5)
    direction, _ = first("rmsprop", 64, rmsprop_decay=0.9)
    assert float(direction) == pytest.approx(1 / math.sqrt(1 - 0.9**4), rel=1e-5)


def test_decay_need_not_follow_the_batch():
    fields = {"batch_size": 16, "exponent": 0.5, "momentum": M, "weight_decay": DECAY}
    at = optimizer_by_batch("adamw", decay_follows_batch=False, **fields)
    w = jnp.float32([2.0])
    direction, _ = at(64).update(jnp.zeros(1), at(64).init(w), w)
    np.testing.assert_allclose(direction, DECAY * w, rtol=1e-6)
