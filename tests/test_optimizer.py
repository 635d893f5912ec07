"""Each optimizer against its published update, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from batchgrow.optimizer import OPTIMIZERS, kernels, make_optimizer, optimizer_by_batch
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


def test_lamb_trusts_kernels_by_their_norms():
    actual = directions("lamb", weight_decay=DECAY)[-1]
    w = start()
    adam = jax.tree.map(lambda *g: closed_form("adam", list(g)), *gradients())
    step = jax.tree.map(lambda a, w: a + DECAY * w, adam, w)
    kernel = step["dense"]["kernel"]
    ratio = np.linalg.norm(w["dense"]["kernel"]) / np.linalg.norm(kernel)
    np.testing.assert_allclose(actual["dense"]["kernel"], ratio * kernel, rtol=2e-5)
    np.testing.assert_allclose(actual["dense"]["bias"], step["dense"]["bias"], rtol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_matters_where_it_is_said_to(name):
    last = [directions(name, momentum=m)[-1]["dense"]["bias"] for m in (0.5, 0.9)]
    assert np.allclose(last[0], last[1]) != COUPLINGS[name].uses_momentum


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown optimizer.name 'adamx'; choose sgd, momentum"):
        make_optimizer("adamx", momentum=M, weight_decay=0.0)
    with pytest.raises(ValueError, match="unknown optimizer.decay_on 'bias'; choose all, kernels"):
        make_optimizer("sgd", momentum=M, weight_decay=0.0, decay_on="bias")
    with pytest.raises(ValueError, match="debias_momentum: 'adam' does not need it"):
        make_optimizer("adam", momentum=M, weight_decay=0.0, debias_momentum=True)


# --- What the options change, by closed forms for a constant gradient.


def steps_under(gradient: float, name: str, count: int = 5, **options) -> list[float]:
    """The directions for a constant gradient of one parameter."""
    options = {"momentum": M, "weight_decay": 0.0} | options
    optimizer = make_optimizer(name, **options)
    state, found = optimizer.init(jnp.ones(())), []
    for _ in range(count):
        direction, state = optimizer.update(jnp.float32(gradient), state, jnp.ones(()))
        found.append(float(direction))
    return found


def test_rmsprop_starts_too_fast_without_bias_correction():
    """As published: the first update is 1 / sqrt(1 - decay) times as large as the last ones."""
    for decay, first in ((0.9, 10**0.5), (0.999, 1000**0.5)):
        options = {"rmsprop_decay": decay, "epsilon": 0.0}
        assert steps_under(3.0, "rmsprop", **options)[0] == pytest.approx(first, rel=1e-3)
        corrected = steps_under(3.0, "rmsprop", rmsprop_bias_correction=True, **options)
        np.testing.assert_allclose(corrected, 1.0, rtol=1e-3)


def test_adagrad_falls_with_the_root_of_the_count_and_epsilon_matters():
    expected = [1 / np.sqrt(t) for t in range(1, 6)]
    np.testing.assert_allclose(steps_under(0.01, "adagrad"), expected, rtol=1e-5)
    assert steps_under(0.01, "adagrad", epsilon=0.01)[0] == pytest.approx(0.5)
    started = steps_under(0.01, "adagrad", adagrad_initial=0.1)[0]
    assert started == pytest.approx(0.01 / np.sqrt(0.1 + 1e-4))


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_debiased_momentum_has_its_full_rate_at_once(name):
    """Without it, a run of n updates falls short by m (1 - m^n) / (1 - m) updates or less."""
    np.testing.assert_allclose(
        steps_under(2.0, name, debias_momentum=True), 2.0 / (1 - M), rtol=1e-5
    )
    plain = steps_under(2.0, "momentum", count=6)
    short = M * (1 - M**6) / (1 - M)
    assert sum(plain) == pytest.approx(2.0 / (1 - M) * (6 - short), rel=1e-5)


def test_the_chains_of_all_batch_sizes_share_their_state():
    for name in OPTIMIZERS:
        for follow in (False, True):
            by_batch = optimizer_by_batch(
                name,
                batch_size=32,
                exponent=0.5,
                momentum=M,
                weight_decay=DECAY,
                betas_follow_batch=follow,
            )
            params = jax.tree.map(jnp.float32, start())
            first, last = (by_batch(size).init(params) for size in (32, 512))
            assert jax.tree.structure(first) == jax.tree.structure(last), name


def test_changing_betas_divide_by_the_weights_that_the_averages_have():
    """b2 falls from 0.999 to 0.996 after 20 updates: a constant gradient still gives 1."""
    by_batch = optimizer_by_batch(
        "adam",
        batch_size=32,
        exponent=0.5,
        momentum=M,
        weight_decay=0.0,
        betas_follow_batch=True,
        epsilon=0.0,
    )
    state = by_batch(32).init(jnp.ones(()))
    for size in [32] * 20 + [128] * 20:
        direction, state = by_batch(size).update(jnp.float32(3.0), state, jnp.ones(()))
        assert float(direction) == pytest.approx(1.0, rel=1e-4)


def test_decoupled_decay_keeps_its_time_constant_in_examples():
    """w <- (1 - lr lambda) w: with a zero gradient, equal examples give equal weights."""
    for exponent in (0.0, 0.5, 1.0):
        by_batch = optimizer_by_batch(
            "adamw", batch_size=10, exponent=exponent, momentum=M, weight_decay=0.01
        )
        logs = []
        for size in (10, 160):
            rate = 0.01 * (size / 10) ** exponent
            direction, _ = by_batch(size).update(
                jnp.zeros(()), by_batch(size).init(jnp.ones(())), jnp.ones(())
            )
            logs.append(np.log1p(-rate * float(direction)) / size)
        assert logs[1] == pytest.approx(logs[0], rel=1e-3)
