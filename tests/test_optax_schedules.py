"""Plans from optax schedules, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from batchgrow import Recipe, curves, decay, from_optax, grow, to_optax

N, BATCH, UPDATES = 6_000, 20, 1_500  # five epochs


def recipe(schedule, **changes):
    fields = {"batch_size": BATCH, "momentum": 0.9, "num_examples": N, "num_updates": UPDATES}
    return from_optax(schedule, **(fields | changes))


SCHEDULES = {
    "cosine": optax.cosine_decay_schedule(0.1, UPDATES),
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, UPDATES),
    "power": optax.polynomial_schedule(0.1, 0.001, 1.7, UPDATES),
    "steps": optax.piecewise_constant_schedule(0.1, {500: 0.2, 1000: 0.5}),
    "restarts": optax.sgdr_schedule(
        [{"init_value": 0.01, "peak_value": 0.1, "warmup_steps": 50, "decay_steps": 750}] * 2
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_decay_is_the_schedule_itself(name):
    """There and back: every update of the plan that keeps the batch has optax's own rate."""
    schedule = SCHEDULES[name]
    plan = decay(recipe(schedule))
    assert (plan.num_updates, plan.batch_sizes()) == (UPDATES, (BATCH,))
    count = np.arange(UPDATES)
    expected = jax.vmap(schedule)(count)
    np.testing.assert_allclose(jax.vmap(to_optax(plan))(count), expected, rtol=1e-4, atol=1e-6)


def test_steps_become_growths_at_the_same_updates():
    plan = grow(recipe(SCHEDULES["steps"]), max_batch_size=200)
    assert plan.batch_sizes() == (20, 100, 200)
    assert [segment.start_examples for segment in plan.segments] == [0, 500 * BATCH, 1000 * BATCH]
    np.testing.assert_allclose([point.learning_rate for point in plan.points()], 0.1, rtol=1e-6)


def test_an_optax_optimizer_takes_the_plans_rate_by_its_own_count():
    curve = curves.step(0.5, (1,), 0.1)
    plan = grow(Recipe(10, 0.0, curve, num_examples=40, num_epochs=2), max_batch_size=20)
    tx = optax.sgd(to_optax(plan))
    params = np.float32(0)
    state = tx.init(params)
    rates = []
    for _ in range(plan.num_updates + 2):  # beyond the end the last rate stays
        updates, state = jax.jit(tx.update)(np.float32(1), state)
        rates.append(-float(updates))
    planned = [point.learning_rate for point in plan.points()]
    assert len(set(planned)) == 2
    np.testing.assert_allclose(rates, [*planned, planned[-1], planned[-1]], rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_are_equal_one_by_one_and_all_at_once(name):
    plan = grow(recipe(SCHEDULES[name], num_updates=600), max_batch_size=50)
    one_by_one = [point.learning_rate for point in plan.points()]
    at_once = [rate for segment in plan.segments for rate in plan.learning_rates(segment)]
    assert one_by_one == at_once


def test_a_long_schedule_is_evaluated_in_few_calls():
    """The values of `to_optax` need no call of the compiled schedule per update."""
    calls = []

    def counting(epochs: np.ndarray) -> np.ndarray:
        calls.append(len(epochs))
        return 0.1 / (1 + epochs)

    curve = curves.Curve(lambda epoch: 0.1 / (1 + epoch), (), on_array=counting)
    plan = decay(Recipe(1, 0.9, curve, num_examples=1000, num_epochs=300))
    calls.clear()
    rates = to_optax(plan)
    assert calls == [300_000]
    assert float(rates(299_999)) == np.float32(plan.at(299_999).learning_rate)


def test_the_schedule_is_asked_on_the_cpu_or_wherever_jax_is(monkeypatch):
    def no_cpu(**_):
        raise RuntimeError("Unknown backend cpu")

    asked_on_cpu = recipe(SCHEDULES["cosine"])
    monkeypatch.setattr(jax, "local_devices", no_cpu)  # JAX_PLATFORMS=cuda, say
    asked_elsewhere = recipe(SCHEDULES["cosine"])
    assert asked_elsewhere.learning_rate_at(15_000) == asked_on_cpu.learning_rate_at(15_000) > 0


def with_if(count):
    return 0.1 if count < 5 else 0.01


def of_whole_updates(count):
    return jnp.arange(0.0, 1.0, 0.1)[count]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (with_if, "concrete number of updates, for example in a Python `if`: use jnp.where"),
        (to_optax(decay(recipe(SCHEDULES["cosine"]))), "a plan from to_optax, which has no single"),
        (of_whole_updates, "must accept a fractional number of updates, but it raises: Indexer"),
        (optax.piecewise_constant_schedule(0.1, {3 * 10**9: 0.5}), "as a real number, .* 3e9"),
        (lambda count: jnp.ones(3) * count, "must return a scalar"),
        (0.1, "schedule=0.1 must be a function of the number of updates"),
    ],
)
def test_wrong_schedules_are_refused_in_one_line(schedule, message):
    with pytest.raises(TypeError, match=message) as error:
        recipe(schedule)
    assert "\n" not in str(error.value)


def test_to_optax_of_a_recipe_is_refused():
    with pytest.raises(TypeError, match="not a Recipe: make one with grow"):
        to_optax(recipe(SCHEDULES["cosine"]))


def test_what_makes_no_recipe_is_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        recipe(SCHEDULES["cosine"], batch_size=0)
    with pytest.raises(ValueError, match="learning_rate is nan"):
        decay(recipe(optax.constant_schedule(float("nan"))))


def test_the_optimizer_decides_how_the_learning_rate_follows_the_batch_size():
    schedule = SCHEDULES["cosine"]
    assert grow(recipe(schedule)).exponent == 1
    adamw = recipe(schedule, optimizer="adamw")
    assert adamw.optimizer == "adamw" and grow(adamw).exponent == 0.5


def test_a_schedule_of_tokens_is_the_schedule_of_its_updates():
    """Updates of 20 examples of 128 tokens: the same recipe, and the plan counts tokens too."""
    by_update = recipe(optax.cosine_decay_schedule(0.1, UPDATES), tokens_per_example=128)
    by_token = recipe(
        optax.cosine_decay_schedule(0.1, UPDATES * BATCH * 128),
        tokens_per_example=128,
        unit="tokens",
    )
    plans = [grow(r, max_batch_size=80) for r in (by_update, by_token)]
    assert plans[0].segments == plans[1].segments
    rates = [[point.learning_rate for point in plan.points()] for plan in plans]
    np.testing.assert_allclose(*rates, rtol=1e-3, atol=1e-7)
    assert "tokens" in plans[1].table()
    long = optax.piecewise_constant_schedule(0.1, {3e9: 0.5})
    plan = grow(recipe(long, tokens_per_example=200_000, unit="tokens"), max_batch_size=40)
    assert [segment.start_examples for segment in plan.segments] == [0, 15_000]


def test_units_of_schedules_are_checked():
    with pytest.raises(ValueError, match="unknown unit 'epochs'; choose updates, tokens"):
        recipe(SCHEDULES["cosine"], unit="epochs")
    with pytest.raises(ValueError, match="unit='tokens': set tokens_per_example"):
        recipe(SCHEDULES["cosine"], unit="tokens")
