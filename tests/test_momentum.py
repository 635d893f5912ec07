"""Momentum that changes during a run: one-cycle recipes, rising momentum, debiased accumulators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_config, run_tiny, tiny_experiment

from batchgrow.config import make_plan
from batchgrow.optimizer import make_optimizer
from batchgrow.plan import Recipe, decay, exchange, follow, grow, ramp
from batchgrow.plan.curves import constant, cosine, one_cycle, with_warmup

N = 8000
RISING = with_warmup(constant(0.98), 4, 0.9)
ONE_CYCLE = Recipe(
    16, one_cycle(0.95, 0.85, 10, 3), one_cycle(0.01, 0.1, 10, 3, end=0.001), N, num_epochs=10
)


def test_one_cycle_is_optax_and_its_opposite() -> None:
    """optax counts updates; the momentum is the mirror image of a cycle of the rate."""
    schedule = optax.cosine_onecycle_schedule(100, 0.1, 0.3, div_factor=10, final_div_factor=10)
    curve = one_cycle(0.01, 0.1, 100, 30, end=0.001)
    for epoch in (0.0, 10.0, 29.9, 30.0, 31.0, 65.0, 99.0, 100.0, 120.0):
        assert curve(epoch) == pytest.approx(float(schedule(epoch)), rel=1e-4)
    momentum = one_cycle(0.95, 0.85, 10, 3)
    assert [momentum(e) for e in (0, 1.5, 3, 6.5, 10)] == pytest.approx(
        [0.95, 0.9, 0.85, 0.9, 0.95]
    )
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"peak_epochs={wrong} must be above 0 and below"):
            one_cycle(0.95, 0.85, 10, wrong)


def recipes_noise(recipe: Recipe, position: int) -> float:
    """lr N / (B (1 - m)) of the recipe, by hand."""
    epoch = position / N
    momentum = recipe.momentum(epoch) if callable(recipe.momentum) else recipe.momentum
    return float(recipe.curve(epoch)) * N / recipe.batch_size / (1 - float(momentum))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (ONE_CYCLE, {"max_batch_size": 128}),
        (ONE_CYCLE, {"momentum": 0.9, "max_batch_size": 128}),
        (
            Recipe(16, 0.9, cosine(0.1, 10), N, num_epochs=10),
            {"momentum": RISING, "max_batch_size": 128},
        ),
        (
            Recipe(16, 0.9, constant(0.1), N, num_epochs=10),
            {"momentum": RISING, "max_batch_size": 128},
        ),
    ],
)
def test_the_noise_scale_is_the_recipes_whatever_the_momentum(recipe, options) -> None:
    plan = grow(recipe, **options)
    assert len(plan.batch_sizes()) > 1
    momentum = options.get("momentum", recipe.momentum)
    for index, point in enumerate(plan.points()):
        # The mean start of the updates that it replaces, but none of an earlier segment.
        middle = point.start_examples + (point.batch_size - recipe.batch_size) // 2
        middle = min(middle, recipe.end_examples - 1)
        segment = plan.segments[point.segment]
        nominal = max(point.start_examples, middle, segment.nominal_start_examples)
        assert point.noise_scale == pytest.approx(recipes_noise(recipe, nominal), rel=1e-6), index
        if callable(momentum):
            assert point.momentum == pytest.approx(momentum(nominal / N))


def test_the_batch_grows_where_the_momentum_rises() -> None:
    """0.9 -> 0.98 at a constant rate: five times the batch at the same rate, as from the start."""
    recipe = Recipe(16, 0.9, constant(0.1), N, num_epochs=10)
    at_once = grow(recipe, momentum=lambda epoch: 0.9 if epoch < 4 else 0.98, max_batch_size=500)
    assert [(s.batch_size, s.momentum) for s in at_once.segments] == [(16, 0.9), (80, 0.98)]
    assert {round(point.learning_rate, 9) for point in at_once.points()} == {0.1}
    smoothly = grow(recipe, momentum=RISING, max_batch_size=500)
    assert smoothly.batch_sizes() == (16, 32, 64)
    last = smoothly.at(smoothly.end_examples - 1)
    assert last.learning_rate == pytest.approx(0.1 * 4 / 5)
    falling = grow(recipe, momentum=with_warmup(constant(0.9), 4, 0.98))
    assert falling.batch_sizes() == (16,)  # the rate at the end is the recipe's
    assert max(point.learning_rate for point in falling.points()) == pytest.approx(0.1)
    assert falling.at(0).learning_rate == pytest.approx(0.1 / 5)


def test_adams_average_needs_no_correction() -> None:
    recipe = Recipe(16, 0.9, cosine(0.1, 10), N, num_epochs=10, optimizer="adamw")
    plan, plain = (grow(recipe, momentum=m, max_batch_size=64) for m in (RISING, None))
    assert [p.learning_rate for p in plan.points()] == [p.learning_rate for p in plain.points()]
    assert plan.at(plan.end_examples - 1).momentum == 0.98


def test_a_plan_that_follows_the_noise_has_the_momentum_of_the_recipe() -> None:
    plan = follow(ONE_CYCLE, max_batch_size=64, decide_every_epochs=1)
    first = plan.next((), {})
    assert first is not None
    for update in (0, 100, first.num_updates - 1):
        expected = ONE_CYCLE.momentum_at(first.start_examples + 16 * update)
        assert plan.momentum_of(first, update) == pytest.approx(expected)
    assert plan.momentum_of(first, 0) != plan.momentum_of(first, 100)


def test_tables_show_the_momentum() -> None:
    plan = ramp(ONE_CYCLE, [(0, 16), (24_000, 64)])
    rows = plan.to_dict()["segments"]
    assert [rows[0]["momentum_start"], rows[1]["momentum_end"]] == pytest.approx(
        [0.95, 0.95], abs=1e-3
    )
    assert "0.85.." in plan.table().splitlines()[2]
    assert (
        "momentum_start" not in decay(Recipe(16, 0.9, constant(0.1), N, 1)).to_dict()["segments"][0]
    )
    assert len({row.momentum for row in exchange.to_rows(plan)}) > 1000


def test_wrong_momenta_are_refused() -> None:
    recipe = Recipe(16, lambda epoch: 0.5 + epoch / 10, constant(0.1), N, num_epochs=10)
    with pytest.raises(ValueError, match="momentum is 1.* at epoch 5"):
        grow(recipe)


M = (0.5, 0.5, 0.9, 0.9, 0.98, 0.98, 0.3)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
@pytest.mark.parametrize("debias", [False, True])
def test_the_accumulator_of_a_momentum_that_changes(name: str, debias: bool) -> None:
    """A gradient g gives s_t g, s_t the sum of the products of later momenta; debiased g / (1 - m).

    The debiased sum over a run is that of the effective rates: a growth of m loses nothing.
    """
    optimizer = make_optimizer(
        name, momentum=0.0, weight_decay=0.0, debias_momentum=debias, changing_momentum=True
    )
    state, found = optimizer.init(jnp.ones(())), []
    update = optax.with_extra_args_support(optimizer).update
    for m in M:
        direction, state = update(jnp.float32(2.0), state, jnp.ones(()), momentum=jnp.float32(m))
        found.append(float(direction))
    sums = [sum(np.prod(M[i + 1 : t + 1]) for i in range(t + 1)) for t in range(len(M))]
    if name == "nesterov":
        sums = [1 + m * s for m, s in zip(M, sums, strict=True)]
    expected = [1 / (1 - m) for m in M] if debias else sums
    np.testing.assert_allclose(found, 2 * np.array(expected), rtol=1e-5)


def test_adams_b1_may_change() -> None:
    """The bias correction divides by the weights of the average: a constant gradient gives 1."""
    optimizer = make_optimizer(
        "adam", momentum=0.0, weight_decay=0.0, epsilon=0.0, changing_momentum=True
    )
    state, firsts = optimizer.init(jnp.ones(())), []
    update = optax.with_extra_args_support(optimizer).update
    for m in M:
        direction, state = update(jnp.float32(2.0), state, jnp.ones(()), momentum=jnp.float32(m))
        assert float(direction) == pytest.approx(1.0, rel=1e-4)
        firsts.append(float(jax.tree.leaves(state)[0]))
    assert firsts[:3] == pytest.approx([1.0, 1.5, 0.9 * 1.5 + 0.1 * 2])


@pytest.mark.parametrize("updates_per_dispatch", [1, 8])
def test_a_run_gives_each_update_its_momentum(tmp_path, updates_per_dispatch) -> None:
    """The weights in the accumulator are s <- m s + 1 with the momenta of the plan's updates."""
    changes = {
        "recipe.momentum_curve": "one_cycle",
        "recipe.warmup_epochs": 0.2,
        "run.updates_per_dispatch": updates_per_dispatch,
    }
    plan = tiny_experiment(changes).plan
    trained = run_tiny(tmp_path, changes)
    weight, compared = 0.0, 0
    for point in plan.points():
        weight = point.momentum * weight + 1
        state = trained.states.get(point.end_examples)
        if state is not None:
            (found,) = [x for x in jax.tree.leaves(state.opt_state) if np.ndim(x) == 0]
            assert float(found) == pytest.approx(weight, rel=1e-5)
            compared += 1
    assert compared == len(trained.states) > 1
    momenta = [row["momentum"] for row in trained.rows]
    assert min(momenta) < 0.86 and max(momenta) > 0.89


def test_configs_name_momenta() -> None:
    cycle = make_config({"recipe.momentum_curve": "one_cycle", "recipe.warmup_epochs": 0.2})
    assert make_plan(cycle, 1437).at(0).momentum == 0.9
    changes = {"plan.momentum": 0.96, "plan.momentum_rise_epochs": 1.0, "recipe.num_epochs": 10.0}
    changes |= {"recipe.boundaries_epochs": (5.0,), "plan.max_batch_size": 512}
    plan = make_plan(make_config(changes), 1437)
    assert plan.at(0).momentum < 0.91 and plan.at(2000).momentum == 0.96
    assert plan.batch_sizes() == (32, 64, 256)  # 2 for the momentum, then 4 for the step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.name": "sgd", "recipe.momentum_curve": "one_cycle"}, "takes no momentum that"),
        ({"recipe.momentum_curve": "one_cycle"}, "warmup_epochs 0.0 must be above 0 and below"),
        ({"recipe.momentum_curve": "circle"}, "unknown recipe.momentum_curve 'circle'; choose"),
        ({"plan.momentum_rise_epochs": 1.0}, "needs plan.momentum, a constant"),
    ],
)
def test_wrong_fields_are_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_plan(make_config(changes), 1437)
    assert "\n" not in str(error.value)
