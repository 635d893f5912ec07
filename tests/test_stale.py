"""Gradients that are some updates old."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lab.stale import old_gradients, stale_momentum


def directions(optimizer, gradients):
    state, found = optimizer.init(jnp.zeros(())), []
    for gradient in gradients:
        direction, state = optimizer.update(jnp.float32(gradient), state, jnp.zeros(()))
        found.append(float(direction))
    return found


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_each_gradient_comes_once_and_late(delay):
    gradients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    late = [0.0] * delay + gradients[: len(gradients) - delay]
    assert directions(old_gradients(delay), gradients) == late
    plain = directions(optax.trace(0.5), late)
    assert directions(stale_momentum(0.5, delay), gradients) == plain


def test_weight_decay_is_not_late():
    optimizer = stale_momentum(0.0, 2, weight_decay=0.1)
    params = jnp.float32(3.0)
    direction, _ = optimizer.update(jnp.float32(1.0), optimizer.init(params), params)
    assert float(direction) == pytest.approx(0.3)


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_the_largest_stable_rate_on_a_parabola(delay):
    """w <- w - lr w(d updates before) is stable up to lr = 2 sin(pi / (4 d + 2))."""
    limit = 2 * math.sin(math.pi / (4 * delay + 2))

    def last(rate):
        past = [1.0] * (delay + 1)
        optimizer = old_gradients(delay)
        state, w = optimizer.init(jnp.zeros(())), 1.0
        for _ in range(800):
            direction, state = optimizer.update(jnp.float32(w), state)
            w -= rate * float(direction)
            past.append(w)
        return np.abs(past[-2 * delay - 3 :]).max()

    assert last(0.97 * limit) < 0.1 and last(1.03 * limit) > 10


def test_a_delay_below_zero():
    with pytest.raises(ValueError, match="optimizer.delay -1 must be 0 or more"):
        old_gradients(-1)
