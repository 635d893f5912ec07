"""What each optimizer keeps when the batch grows: exact second moments on a noisy quadratic.

The loss is h w^2 / 2. The gradient of B examples is h w + s e / sqrt(B), with e of variance 1.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.optimizer import optimizer_by_batch
from batchgrow.plan import Recipe, decay, grow, ramp
from batchgrow.plan.coupling import COUPLINGS, decay_at, epsilon_at, weight_decay_at
from batchgrow.plan.curves import constant, step

H, S = 0.01, 1.0  # curvature, noise of one example


def stationary(rate: float, batch: int, momentum: float, *, sums: bool) -> float:
    """E[w^2] in the steady state of A <- m A + (1 or 1 - m) g, w <- w - rate A, exactly.

    x = (w, A) is linear in the noise: C <- F C F' + G G'. Solved as a linear system.
    """
    gain = 1.0 if sums else 1 - momentum
    of_a = np.array([gain * H, momentum])
    step_matrix = np.array([np.array([1.0, 0.0]) - rate * of_a, of_a])
    noise = gain * S / math.sqrt(batch) * np.array([-rate, 1.0])
    system = np.eye(4) - np.kron(step_matrix, step_matrix)
    return float(np.linalg.solve(system, np.outer(noise, noise).ravel())[0])


def adam_rate(rate: float, batch: int) -> float:
    """The rate of Adam as one of SGD: where noise dominates, sqrt(v) is S / sqrt(B)."""
    return rate * math.sqrt(batch) / S


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_sgd_keeps_its_noise_with_exponent_1(name: str) -> None:
    """In the limit of small steps E[w^2] = lr s^2 / (2 h B (1 - m)): what the noise scale says."""
    momentum = 0.9 if COUPLINGS[name].uses_momentum else 0.0
    rate = 0.001 * (1 - momentum)
    of_recipe = stationary(rate, 4, momentum, sums=True)
    assert of_recipe == pytest.approx(rate / (1 - momentum) / (2 * H * 4), rel=1e-3)
    for growth in (2, 4, 16):
        kept = growth ** (COUPLINGS[name].exponent or 0)
        of_plan = stationary(rate * kept, 4 * growth, momentum, sums=True)
        assert of_plan == pytest.approx(of_recipe, rel=1e-2)


def test_momentum_multiplies_the_batch_of_sgd_only() -> None:
    """m 0.9 -> 0.98: a batch 5 times as large for SGD, none for Adam, whose average is normalised.

    Adam's displacement under a constant gradient is lr per update; a batch 5 times as large would
    make a fifth of the updates.
    """
    fields = {"curve": constant(0.001), "num_examples": 64_000, "num_epochs": 4}
    of_each = {"momentum": 160, "nesterov": 160, "lars": 160, "adam": 32, "adamw": 32, "lamb": 32}
    for name, batch in of_each.items():
        recipe = Recipe(32, 0.9, optimizer=name, **fields)
        plan = grow(recipe, momentum=0.98, exponent=1 if name == "lars" else None)
        assert plan.batch_sizes() == (batch,)
        assert plan.at(0).learning_rate == pytest.approx(0.001)
        assert plan.at(0).momentum == 0.98
        of_plan, of_recipe = (
            sum(p.learning_rate * COUPLINGS[name].gain(p.momentum) for p in found.points())
            for found in (plan, decay(plan.recipe))
        )
        assert of_plan == pytest.approx(of_recipe)  # the displacement under a constant gradient
    kept = [stationary(adam_rate(1e-5, 32), 32, m, sums=False) for m in (0.9, 0.98)]
    assert kept[1] == pytest.approx(kept[0], rel=0.01)


def test_the_momentum_of_lars_sums_steps() -> None:
    """Its diffusion is lr / (1 - m) sqrt(N / B), that of Adam lr sqrt(N / B)."""
    fields = {"curve": constant(0.1), "num_examples": 64_000, "num_epochs": 4}
    for name, gain in (("lars", 10), ("lamb", 1)):
        found = decay(Recipe(40, 0.9, optimizer=name, **fields)).at(0).noise
        assert found == {"diffusion": pytest.approx(0.1 * gain * math.sqrt(1600))}


def test_sgd_has_no_momentum() -> None:
    """The noise scale would count it, 1 / (1 - m) times as large, although no update has it."""
    fields: dict[str, Any] = {"curve": constant(0.1), "num_examples": 1000, "num_epochs": 4}
    recipe = Recipe(32, 0.0, optimizer="sgd", **fields)
    assert decay(recipe).at(0).noise_scale == pytest.approx(0.1 * 1000 / 32)
    for make in (
        lambda: Recipe(32, 0.9, optimizer="sgd", **fields),
        lambda: Recipe(32, lambda epoch: 0.9, optimizer="sgd", **fields),
        lambda: grow(recipe, momentum=0.9),
        lambda: ramp(recipe, [(0, 32)], momentum=0.9),
    ):
        with pytest.raises(ValueError, match="the optimizer 'sgd' has no momentum; set it to 0"):
            make()


def test_adam_keeps_its_noise_with_exponent_one_half() -> None:
    """With exponent 1 and 4 times the batch E[w^2] doubles; with 1/2 it stays."""

    def second_moment(exponent: float) -> float:
        return stationary(adam_rate(1e-5 * 4**exponent, 128), 128, 0.9, sums=False)

    of_recipe = stationary(adam_rate(1e-5, 32), 32, 0.9, sums=False)
    assert second_moment(1.0) / of_recipe == pytest.approx(2, rel=0.01)
    assert second_moment(0.5) / of_recipe == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "lamb"])
def test_plans_of_normalised_steps_keep_the_diffusion(name: str) -> None:
    """lr sqrt(N / B) is that of the recipe at every update, and nothing is called a noise scale."""
    curve = step(1e-3, (2, 4), 0.25)
    momentum = 0.0 if name == "rmsprop" else 0.9
    recipe = Recipe(32, momentum, curve, num_examples=64_000, num_epochs=6, optimizer=name)
    plan = grow(recipe, max_batch_size=512)
    assert plan.exponent == 0.5
    assert plan.batch_sizes() == (32, 128, 512)
    for point in (plan.at(segment.start_examples) for segment in plan.segments):
        of_recipe = recipe.learning_rate_at(point.start_examples) * math.sqrt(64_000 / 32)
        assert point.diffusion == pytest.approx(of_recipe)
        assert point.noise == {"diffusion": point.diffusion}
    assert "noise" not in plan.table() and "diffusion" in plan.table()
    assert "noise_scale" not in plan.to_dict() and len(plan.to_dict()["diffusion"]) == 128


def test_the_papers_exponent_is_one_word_away() -> None:
    recipe = Recipe(32, 0.9, step(1e-3, (2,), 0.25), 64_000, num_epochs=4, optimizer="adam")
    plan = grow(recipe, exponent=1)
    assert [plan.at(s.start_examples).learning_rate for s in plan.segments] == [1e-3, 1e-3]


@pytest.mark.parametrize("name", ["lars", "adagrad"])
def test_without_a_rule_the_exponent_must_be_given(name: str) -> None:
    recipe = Recipe(32, 0.0, step(1e-3, (2,), 0.25), 64_000, num_epochs=4, optimizer=name)
    assert decay(recipe).batch_sizes() == (32,)
    with pytest.raises(ValueError, match=f"optimizer '{name}' has no rule .* set the exponent"):
        grow(recipe)
    assert grow(recipe, exponent=1).batch_sizes() == (32, 128)


def test_unknown_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adamx'; choose sgd, momentum"):
        Recipe(32, 0.9, constant(0.1), 1000, num_epochs=1, optimizer="adamx")


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adagrad"])
def test_a_momentum_that_the_optimizer_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"momentum=0.9: the optimizer '{name}' has no momentum"):
        Recipe(32, 0.9, constant(0.1), 1000, num_epochs=1, optimizer=name)


def test_half_lives_in_examples() -> None:
    for growth in (0.25, 4.0, 16.0):
        half_lives = [math.log(0.5) / math.log(b) for b in (0.999, decay_at(0.999, growth))]
        assert half_lives[1] * growth == pytest.approx(half_lives[0])
    assert decay_at(0.999, 4) == pytest.approx(1 - 4 * 0.001, rel=1e-5)  # Malladi et al.
    assert decay_at(0.9, 64, floor=0.5) == 0.5
    assert decay_at(0.3, 64, floor=0.5) == 0.3  # a smaller one is the user's
    assert epsilon_at(1e-8, 4) == 5e-9
    assert weight_decay_at(0.1, 16, 1.0) == 0.1
    assert weight_decay_at(0.1, 16, 0.5) == pytest.approx(0.4)


def simulated(follow: bool, growth: int, updates: int) -> tuple[float, float]:
    """E[w^2] of Adam over many parameters after a growth, and before it; the real chain."""
    by_batch = optimizer_by_batch(
        "adam",
        batch_size=16,
        exponent=0.5,
        momentum=0.0,
        weight_decay=0.0,
        b2=0.999,
        betas_follow_batch=follow,
        b1_floor=0.0,
    )
    rate = 0.02

    def body(size: int):
        optimizer = by_batch(size)

        def update(carry, key):
            w, state = carry
            g = w + 40.0 * jax.random.normal(key, w.shape) / math.sqrt(size)
            d, state = optimizer.update(g, state, w)
            w = w - rate * math.sqrt(size / 16) * d
            return (w, state), jnp.mean(w**2)

        return update

    start = 4000
    keys = jax.random.split(jax.random.key(0), start + updates)
    carry = jnp.zeros(1024), by_batch(16).init(jnp.zeros(1024))
    carry, before = jax.lax.scan(body(16), carry, keys[:start])
    _, after = jax.lax.scan(body(16 * growth), carry, keys[start:])
    return float(before[-1000:].mean()), float(after[updates // 2 :].mean())


def test_second_moments_that_follow_the_batch_forget_the_old_noise() -> None:
    """After the batch grew 16-fold, sqrt(v) is 4 times too large until v has forgotten.

    With b2 fixed that takes 16 times as many examples, over which steps are too short and w keeps
    too little noise; with the half-life in examples the noise stays.
    """
    before, fixed = simulated(False, 16, 400)
    _, followed = simulated(True, 16, 400)
    assert followed / before == pytest.approx(1, abs=0.1)
    assert fixed / before < 0.5
