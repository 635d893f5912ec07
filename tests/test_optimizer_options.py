"""What the options of the optimizers change, by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.optimizer import OPTIMIZERS, freeze, make_optimizer, optimizer_by_batch
from batchgrow.plan.coupling import COUPLINGS

M = 0.9


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
                weight_decay=0.1,
                betas_follow_batch=follow,
            )
            params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
            first, last = (by_batch(size).init(params) for size in (32, 512))
            assert jax.tree.structure(first) == jax.tree.structure(last), name
            leaves = jax.tree.leaves(first)  # They are donated, so no two may be one array.
            assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves), name


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


def test_betas_follow_the_batch_or_the_momentum_changes():
    with pytest.raises(ValueError, match="b1 cannot follow the batch too"):
        optimizer_by_batch(
            "adam",
            batch_size=32,
            exponent=0.5,
            momentum=M,
            weight_decay=0.0,
            betas_follow_batch=True,
            changing_momentum=True,
        )


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_l1_is_a_gradient_of_its_own_where_weight_decay_is(name):
    """l1 * sign(w) takes the place of lambda * w: before the accumulators, or after Adam's."""
    params = {"kernel": jnp.array([[2.0, -3.0], [0.0, 5.0]]), "bias": jnp.array([1.0, -1.0])}
    gradient = jax.tree.map(lambda w: 0.1 + 0 * w, params)
    signs = jax.tree.map(jnp.sign, params)
    options = {"momentum": M, "weight_decay": 0.0, "decay_on": "kernels"}

    def direction(gradient, name=name, **more):
        optimizer = make_optimizer(name, **{**options, **more})
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    found = direction(gradient, l1=0.5)
    if COUPLINGS[name].decoupled_decay or name == "lamb":
        before = direction(gradient, "adam")
        expected = jax.tree.map(lambda d, s: d + 0.5 * s, before, signs)
    else:
        expected = direction(jax.tree.map(lambda g, s: g + 0.5 * s, gradient, signs))
    if name == "lamb":  # It scales the sum by a trust ratio.
        norms = [np.linalg.norm(tree["kernel"]) for tree in (params, expected)]
        expected["kernel"] *= norms[0] / norms[1]
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-5)
    np.testing.assert_allclose(found["bias"], direction(gradient)["bias"], rtol=1e-6)


def test_decoupled_l1_keeps_its_effect_per_example():
    """Four times the batch: half as many examples of rate at p = 0.5, so twice the coefficient."""
    at = optimizer_by_batch(
        "adamw", batch_size=32, exponent=0.5, momentum=M, weight_decay=0.0, l1=0.1
    )
    params, gradient = jnp.array([1.0, 1.0]), jnp.zeros(2)
    found = [at(size).update(gradient, at(size).init(params), params)[0] for size in (32, 128)]
    np.testing.assert_allclose(found, [[0.1, 0.1], [0.2, 0.2]], rtol=1e-6)


def test_frozen_parameters_get_a_direction_of_zero():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    plain = make_optimizer("momentum", momentum=M, weight_decay=0.1)
    by_batch = {32: plain, 64: make_optimizer("momentum", momentum=M, weight_decay=0.2)}

    def frozen(params):
        return {"a": True, "b": False}

    at = freeze(lambda size: by_batch[size], frozen)
    for optimizer, of_b in ((freeze(plain, frozen), 1.1), (at(32), 1.1), (at(64), 1.2)):
        direction, _ = optimizer.update(params, optimizer.init(params), params)
        np.testing.assert_allclose(direction["a"], 0)
        np.testing.assert_allclose(direction["b"], of_b, rtol=1e-6)
