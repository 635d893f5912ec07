"""The gradient noise scale: its estimators, what measures it, and the plan that follows it."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_config, run_tiny

from batchgrow import layout, noise, report
from batchgrow.config import make_experiment, make_noise_probe
from batchgrow.data.datasets import ArrayDataset
from batchgrow.engine import Engine
from batchgrow.experiment import NoiseProbe
from batchgrow.plan import (
    FollowPlan,
    Recipe,
    curves,
    decay,
    follow,
    from_run,
    grow,
    ramp,
    replay,
)
from batchgrow.plan.noise import NoiseAverage, estimate
from batchgrow.run.noise_meter import NoiseMeter
from batchgrow.step import TrainState
from batchgrow.tasks.regression import Regression


def pieces_of(gradients: np.ndarray, piece_size: int) -> tuple[float, float]:
    """(s, G) of per-example gradients `(examples, parameters)`."""
    means = gradients.reshape(-1, piece_size, gradients.shape[1]).mean(1)
    return (means**2).sum(1).mean(), (means.mean(0) ** 2).sum()


def test_estimates_are_unbiased_on_a_quadratic():
    """Loss |w - x|^2 / 2 with x ~ N(0, Sigma): the gradient is w - x, so both are known."""
    rng, num_draws = np.random.default_rng(0), 20_000
    w, scales = np.array([1.0, 2.0, 0.0]), np.array([1.0, 0.5, 3.0])
    gradients = w - scales * rng.standard_normal((num_draws, 8, 3))
    found = np.array([estimate(*pieces_of(g, 2), 2, 8) for g in gradients])
    expected = (w**2).sum(), (scales**2).sum()
    errors = found.std(0) / math.sqrt(num_draws)
    assert (np.abs(found.mean(0) - expected) < 4 * errors).all()


def test_without_replacement_the_gradient_of_the_training_set_is_meant():
    """All ways to take 4 of 6 examples in pieces of 2: the mean is exact, not only in the limit."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 3)) + 1.0
    orders = np.array([rng.permutation(6) for _ in range(60_000)])[:, :4]
    found = np.array([estimate(*pieces_of(gradients[o], 2), 2, 4, num_examples=6) for o in orders])
    expected = (gradients.mean(0) ** 2).sum(), gradients.var(0, ddof=1).sum()
    errors = found.std(0) / math.sqrt(len(orders))
    assert (np.abs(found.mean(0) - expected) < 4 * errors).all()


def test_one_piece_is_refused():
    with pytest.raises(ValueError, match="a batch of 8 examples in pieces of 8 has one piece"):
        estimate(1.0, 1.0, 8, 8)


def test_averages_are_by_examples_and_debiased():
    average = NoiseAverage(horizon=100.0)
    assert average.noise_scale is None
    one = average.add(4.0, 8.0, 50)
    assert one.noise_scale == pytest.approx(2.0)
    two = one.add(1.0, 8.0, 50)
    decay = math.exp(-0.5)
    weights = decay * (1 - decay), 1 - decay
    squared_norm = (4 * weights[0] + 1 * weights[1]) / sum(weights)
    assert two.noise_scale == pytest.approx(8.0 / squared_norm)
    assert two.add(-100.0, 8.0, 50).noise_scale is None  # a negative average is unknown


def test_the_accumulator_of_optax_equals_the_averages():
    """Pieces one after another, two batches of three and then one of two: the batch may change."""
    rng = np.random.default_rng(0)
    draw = lambda: {"a": rng.standard_normal(4) + 1.0, "b": rng.standard_normal((2, 3)) + 1.0}  # noqa: E731
    average, state = NoiseAverage(horizon=50.0), None
    for num_pieces in (3, 3, 2):
        chain = optax.chain(noise.accumulate_noise(5, num_pieces, 50.0, 100), optax.identity())
        pieces = [draw() for _ in range(num_pieces)]
        state = state or chain.init(pieces[0])
        for piece in pieces:
            same, state = chain.update(piece, state)
            assert all((same[name] == piece[name]).all() for name in piece)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *pieces)
        norms = [float(x) for x in noise.squared_norms(stacked)]
        size = 5 * num_pieces
        average = average.add(*estimate(*norms, 5, size, 100), size)
        assert noise.noise_scale_of(state) == pytest.approx(average.noise_scale, rel=1e-5)


def test_with_one_piece_the_accumulator_says_unknown():
    one = noise.accumulate_noise(5, 1, 50.0)
    _, state = one.update({"a": jnp.ones(2)}, one.init({"a": jnp.ones(2)}))
    assert noise.noise_scale_of(state) is None
    with pytest.raises(ValueError, match="no accumulate_noise; add it to optax.chain"):
        noise.noise_scale_of(optax.sgd(0.1).init({"a": jnp.ones(2)}))
    with pytest.raises(ValueError, match="piece_size=0 must be 1 or more"):
        noise.accumulate_noise(0, 1, 50.0)


def test_squared_norms_of_piece_gradients():
    gradients = {"a": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([1.0, -1.0])}
    piece, batch = noise.squared_norms(gradients)
    assert float(piece) == pytest.approx((9 + 1 + 16 + 1) / 2)
    assert float(batch) == pytest.approx(1.5**2 + 2**2 + 0)


def test_gradients_in_bfloat16_are_measured_in_float32():
    rng = np.random.default_rng(0)
    rough = {"a": jnp.asarray(rng.standard_normal((8, 5000)) + 0.1, jnp.bfloat16)}
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), rough)
    norms = noise.squared_norms(exact)
    for found, expected in zip(noise.squared_norms(rough), norms, strict=True):
        assert found.dtype == jnp.float32
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
    chain = noise.accumulate_noise(4, 8, 50.0)
    state = chain.init({"a": rough["a"][0]})
    for piece in rough["a"]:
        same, state = chain.update({"a": piece}, state)
        assert same["a"].dtype == jnp.bfloat16
    squared_norm, trace = estimate(*map(float, norms), 4, 32)
    assert noise.noise_scale_of(state) == pytest.approx(trace / squared_norm, rel=1e-4)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(x)


def linear_experiment(num_devices, optimizer="momentum", num_pieces=5, **changes):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 3)).astype(np.float32)
    y = (x @ np.array([[1.0], [-2.0], [0.5]]) + rng.standard_normal((40, 1))).astype(np.float32)
    experiment = make_experiment(
        make_config({"run.num_devices": num_devices, "optimizer.name": optimizer} | changes)
    )
    return dataclasses.replace(
        experiment,
        task=Regression(Linear()),
        train_data=ArrayDataset({"x": x, "y": y}),
        test_data=ArrayDataset({"x": x, "y": y}),
        ghost_batch_size=1,
        noise=NoiseProbe(piece_size=3, num_pieces=num_pieces, every=100, horizon=100.0),
    )


def measured(experiment, position=7):
    mesh = layout.make_mesh(experiment.execution.num_devices)
    with Engine(experiment, mesh) as engine:
        return engine.measure_noise(engine.noise().result(), engine.initial_state(), position)


def test_a_probe_of_parameters_in_bfloat16_is_float32():
    experiment = linear_experiment(1)
    with Engine(experiment, layout.make_mesh(1)) as engine:
        feed, state = engine.feed, engine.initial_state()
        pieces = feed.batch(np.arange(15).reshape(5, 3))
        arrays = jax.tree.map(jnp.asarray, feed.arrays)
        rough = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
        options = {"task": experiment.task, "examples": feed.examples, "seed": 0}
        found, expected = (
            noise.measure(
                dataclasses.replace(state, params=params), pieces, jnp.ones(5), arrays, **options
            )
            for params in (rough, jax.tree.map(lambda x: x.astype(jnp.float32), rough))
        )
    for name, value in found.items():
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(float(expected[name]), rel=0.02)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_a_probe_equals_brute_force_on_any_devices(num_devices):
    """5 pieces do not divide 2 or 8 devices. Per-example gradients of least squares are known."""
    experiment = linear_experiment(num_devices)
    found = measured(experiment)
    with Engine(experiment, layout.make_mesh(1)) as engine:
        params = jax.device_get(engine.initial_state().params)["Dense_0"]
        index = engine.feed.batch(np.arange(7, 22))["index"]
    x, y = (experiment.train_data.arrays[name][index].astype(np.float64) for name in "xy")
    residual = x @ params["kernel"] + params["bias"] - y
    gradients = 2 * residual * np.concatenate([x, np.ones((15, 1))], 1)
    piece, batch = pieces_of(gradients, 3)
    assert found["piece"] == pytest.approx(piece, rel=1e-5)
    assert found["batch"] == pytest.approx(batch, rel=1e-5)
    assert found.keys() == {"piece", "batch"}


@pytest.mark.parametrize("betas_follow", [False, True])
def test_adam_has_a_preconditioned_noise_beside_it(betas_follow):
    """Before the first update all second moments are equal, and so are the noise scales."""
    options = {"optimizer.betas_follow_batch": betas_follow}
    found = measured(linear_experiment(1, optimizer="adam", **options))
    plain = estimate(found["piece"], found["batch"], 3, 15)
    scaled = estimate(found["piece_preconditioned"], found["batch_preconditioned"], 3, 15)
    assert scaled[1] / scaled[0] == pytest.approx(plain[1] / plain[0], rel=1e-4)


def test_an_adam_of_some_parameters_has_no_preconditioned_noise():
    experiment = linear_experiment(1)
    kernels = {"Dense_0": {"kernel": True, "bias": False}}
    optimizer = optax.masked(optax.scale_by_adam(), kernels)
    found = measured(dataclasses.replace(experiment, optimizer=optimizer))
    assert found.keys() == {"piece", "batch"}


def test_the_preconditioner_divides_by_the_root_of_the_second_moment():
    params, moments = {"w": jnp.zeros(2)}, {"w": jnp.array([4.0, 0.25])}
    adam = optax.ScaleByAdamState(jnp.int32(0), params, moments)
    scale = noise._preconditioner(
        TrainState(params, {}, (optax.EmptyState(), adam), None, {}, None)
    )
    squared = noise._squared_norm({"w": jnp.array([2.0, 3.0])}, scale)
    assert float(squared) == pytest.approx(4 / 2 + 9 / 0.5)


def test_the_column_is_the_ratio_of_the_averages():
    probe = NoiseProbe(piece_size=3, num_pieces=5, every=30, horizon=100.0)
    experiment = dataclasses.replace(linear_experiment(1), noise=probe)
    meter, average = NoiseMeter(experiment), NoiseAverage(100.0)
    for piece, batch, num_intervals in ((9.0, 5.0, 1), (7.0, 3.0, 2)):
        meter.add({"piece": piece, "batch": batch}, num_intervals)
        estimates = estimate(piece, batch, 3, 15, num_examples=40)
        average = average.add(*estimates, 30 * num_intervals)
    assert meter.columns() == {"gradient_noise_scale": average.noise_scale}


def test_the_layers_share_the_norms():
    """Their squared norms sum to the whole, and rows have a column for each."""
    changes = {"noise.share": 0.5, "noise.by_layer": True}
    found = measured(make_experiment(make_config(changes)))
    layers = {name for name in found if name.startswith("piece/")}
    assert layers == {"piece/Dense_0", "piece/Dense_1", "piece/GhostBatchNorm_0"}
    for part in ("piece", "batch"):
        parts = [value for name, value in found.items() if name.startswith(f"{part}/")]
        assert sum(parts) == pytest.approx(found[part], rel=1e-5)


def test_rows_have_the_noise_of_each_layer(tmp_path):
    rows = run_tiny(tmp_path, MEASURED | {"noise.by_layer": True}).rows
    assert any("gradient_noise_scale/Dense_0" in row for row in rows)


MEASURED = {"noise.share": 0.5, "noise.num_pieces": 5, "log_every_epochs": 0.1}
_reference: list = []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"run.updates_per_dispatch": 1}, marks=pytest.mark.slow),
        pytest.param({"run.num_devices": 8}, marks=pytest.mark.slow),
        {"run.num_devices": 2, "run.max_microbatch_size": 8},
        {"run.input": "streamed"},
    ],
    ids=["one update a dispatch", "devices", "micro-batches", "streamed"],
)
def test_a_run_measures_the_same_however_it_is_executed(changes, tmp_path):
    """And measuring changes nothing: the rows are those of a run that does not measure."""
    if not _reference:
        _reference.append(run_tiny(tmp_path / "one", MEASURED).rows)
        plain = run_tiny(tmp_path / "plain", {"log_every_epochs": 0.1}).rows
        for row, other in zip(_reference[0], plain, strict=True):
            assert other == {
                k: v for k, v in row.items() if not k.endswith("noise_scale") or k in other
            }
    rows = run_tiny(tmp_path / "other", MEASURED | changes).rows
    found = [row.get("gradient_noise_scale") for row in rows]
    expected = [row.get("gradient_noise_scale") for row in _reference[0]]
    assert sum(value is not None for value in expected) >= 3
    for value, other in zip(found, expected, strict=True):
        assert (value is None) == (other is None)
        assert value is None or value == pytest.approx(other, rel=1e-3)


def test_where_the_noise_is_measured(tmp_path, monkeypatch):
    """After each 160 examples, on the 80 of the stream that come next."""
    measured = []
    measure = Engine.measure_noise

    def note(engine, executable, state, position):
        measured.append(position)
        return measure(engine, executable, state, position)

    monkeypatch.setattr(Engine, "measure_noise", note)
    run_tiny(tmp_path, MEASURED)
    assert measured == [160, 320, 480, 736]  # Updates of 128 end at 480, 608 and 736.
    config = make_config({"noise.share": 0.25, "noise.num_pieces": 5, "noise.horizon_epochs": 2.0})
    assert make_noise_probe(config, 1437) == NoiseProbe(16, 5, every=320, horizon=2874)


def test_pieces_hold_whole_ghost_batches():
    with pytest.raises(ValueError, match="noise.piece_size 24 must be a multiple of .* 16"):
        make_experiment(make_config({"noise.share": 0.1, "noise.piece_size": 24}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"noise.share": 1.5},
            "noise.share 1.5 must be a finite number, at most 1, above 0, or None",
        ),
        (
            {"noise.share": 0.1, "noise.num_pieces": 1},
            "noise.num_pieces 1 must be a whole number, 2 or more",
        ),
        (
            {"noise.num_pieces": 200, "noise.piece_size": 8},
            "200 of 8 examples are more than the 1437",
        ),
        ({"plan.name": "follow", "noise.share": None}, "'follow' needs the measured noise; set"),
        (
            {"plan.name": "follow", "plan.factor": -1.0},
            "plan.factor -1.0 must be a finite number, .*above 0",
        ),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        make_experiment(make_config({"noise.share": 0.1} | fields))


RECIPE = Recipe(16, 0.9, curves.constant(0.1), num_examples=1000, num_epochs=3)


def decided(plan, noise_scales):
    """The segments of a run that measures these, one after another."""
    history, measured = [], {}
    scales = iter(noise_scales)
    while segment := plan.next(history, measured):
        history.append(segment)
        measured = {"gradient_noise_scale": next(scales, measured.get("gradient_noise_scale", 0))}
    return history


def test_follow_climbs_one_rung_at_a_time_and_never_back():
    plan = follow(RECIPE, max_batch_size=100, batch_multiple=16, decide_every_epochs=0.5)
    assert plan.rungs == (16, 32, 64, 96)
    history = decided(plan, [20, 200, 10, 500, 10])
    assert [segment.batch_size for segment in history] == [16, 16, 32, 32, 64, 64]
    ends = [segment.end_examples for segment in history]
    for end, decision in zip(ends, range(500, 3001, 500), strict=True):
        assert abs(end - decision) <= 32
    assert plan.batch_sizes(history) == (64, 96)
    assert plan.known(history[:2]) == tuple(history[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decide_every_epochs": 0.0}, "decide_every_epochs=0.0 must be a finite number above 0"),
        ({"decide_every_epochs": math.nan}, "decide_every_epochs=nan must be"),
        ({"decide_every_epochs": math.inf}, "decide_every_epochs=inf must be"),
        ({"batch_multiple": 0}, "batch_multiple=0 must be a whole number, 1 or more"),
    ],
)
def test_follow_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        follow(RECIPE, **options)


def test_a_plan_that_follows_checks_its_fields():
    with pytest.raises(TypeError, match=r"not a FollowPlan: pass plan.recipe"):
        follow(follow(RECIPE))
    with pytest.raises(TypeError, match=r"not a FollowPlan: pass plan.recipe"):
        FollowPlan(follow(RECIPE), 64, 100)
    with pytest.raises(ValueError, match="max_batch_size=100 must be a multiple of .*=16"):
        FollowPlan(RECIPE, 100, 100, batch_multiple=16)
    with pytest.raises(ValueError, match="batch_multiple=0 must be a whole number"):
        FollowPlan(RECIPE, 100, 100, batch_multiple=0)


def test_an_update_of_several_intervals_counts_them_all(tmp_path, monkeypatch):
    """The averages are by examples: 64 between probes, then updates of 128."""
    added, add = [], NoiseMeter.add

    def note(meter, norms, num_intervals):
        added.append(num_intervals)
        add(meter, norms, num_intervals)

    monkeypatch.setattr(NoiseMeter, "add", note)
    run_tiny(tmp_path, {"noise.share": 1.0, "noise.num_pieces": 4})
    assert added == [1] * 5 + [2] * 3


def test_follow_starts_no_higher_than_its_limit():
    assert follow(RECIPE, max_batch_size=8, decide_every_epochs=0.5).rungs == (8,)


def test_a_run_that_follows_can_be_read_before_it_grows(tmp_path):
    """As a report does beside a run that trains, or that has diverged."""
    run_tiny(tmp_path, FOLLOW, stop=lambda examples_seen: True)
    (segment,) = report.read_run(str(tmp_path)).plan["segments"]
    assert segment["start_examples"] == 0


def test_follow_waits_for_the_noise_times_the_factor():
    plan = follow(RECIPE, max_batch_size=64, factor=0.5, decide_every_epochs=1.0)
    assert [segment.batch_size for segment in decided(plan, [63, 64])] == [16, 16, 32]
    assert [segment.batch_size for segment in decided(plan, [])] == [16, 16, 16]  # unknown


FOLLOW = {
    "plan.name": "follow",
    "plan.factor": 100.0,
    "plan.decide_every_epochs": 0.1,
    "noise.share": 0.5,
    "noise.num_pieces": 5,
    "recipe.num_epochs": 1.0,
}


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(1, id="same devices"),
        pytest.param(8, id="other devices", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_follows_decides_the_same_after_stops(devices, tmp_path):
    whole = run_tiny(tmp_path / "whole", FOLLOW)
    sizes = [row["batch_size"] for row in whole.rows]
    assert sizes[0] == 32 and sizes[-1] == 128  # it grows
    for after, count in ((200, 1), (500, devices)):
        changes = FOLLOW | {"run.num_devices": count}
        stop = {"stop": lambda seen, after=after: seen >= after, "override_config": True}
        run_tiny(tmp_path / "stopped", changes, **stop)
    resumed = run_tiny(tmp_path / "stopped", FOLLOW, override_config=True)
    assert [row["batch_size"] for row in resumed.rows] == sizes
    if devices == 1:
        assert resumed.rows == whole.rows
    facts = report.facts([report.read_run(str(tmp_path / "stopped"))])
    (run,), (plan,) = facts["runs"], facts["comparisons"][0]["plans"]
    assert [segment["batch_size"] for segment in plan["segments"]] == [32, 64, 128]
    assert sum(segment["num_updates"] for segment in plan["segments"]) == plan["num_updates"]
    decided = [(d["batch_size"], d["next_batch_size"]) for d in run["decisions"]]
    assert len(decided) >= 8 and (32, 64) in decided and (64, 128) in decided
    for decision in run["decisions"]:
        grows = decision["next_batch_size"] > decision["batch_size"]
        assert not grows or 100 * decision["noise_scale"] >= decision["next_batch_size"]


def test_a_plan_can_be_made_from_measurements():
    plan = follow(RECIPE, max_batch_size=64, decide_every_epochs=0.5)
    fixed = replay(plan, [(400, 40.0), (1600, 100.0)])
    sizes = [(s.start_examples, s.batch_size) for s in fixed.segments]
    assert [size for _, size in sizes] == [16, 32, 64]
    assert [abs(n - at) <= 32 for (n, _), at in zip(sizes, (0, 500, 2000), strict=True)] == [
        True
    ] * 3
    assert len(replay(plan, []).segments) == 1


def test_a_recorded_run_becomes_a_fixed_plan():
    plan = follow(RECIPE, max_batch_size=64, decide_every_epochs=0.5)
    history = decided(plan, [20, 200, 10, 500])
    fixed = from_run(RECIPE, plan.to_dict(history))
    points = [p for i in range(len(history)) for p in plan.segment_points(history[: i + 1])]
    assert [p[:2] + p[3:] for p in fixed.points()] == [p[:2] + p[3:] for p in points]
    assert len(fixed.segments) == 3
    other = dataclasses.replace(RECIPE, num_examples=999)
    with pytest.raises(ValueError, match="is for 1000 examples and the recipe has 999"):
        from_run(other, plan.to_dict(history))


def test_a_recorded_run_with_a_changing_momentum_needs_the_recipes_curve():
    rising = curves.with_warmup(curves.constant(0.9), 2, 0.5)
    recipe = dataclasses.replace(RECIPE, momentum=rising)
    plan = ramp(recipe, [(0, 16), (1_600, 32)])
    assert updates(from_run(recipe, plan.to_dict(), 0.0)) == updates(plan)
    with pytest.raises(ValueError, match="momentum changed .*, but the recipe has 0.9 throughout"):
        from_run(RECIPE, plan.to_dict(), 0.0)


def updates(plan):
    return [(p.start_examples, p.batch_size, p.learning_rate, p.momentum) for p in plan.points()]


def test_a_recorded_plan_has_the_exponent_of_its_optimizer():
    recipe = dataclasses.replace(RECIPE, optimizer="adamw")
    plan = follow(recipe, max_batch_size=64, decide_every_epochs=0.5)
    recorded = plan.to_dict(decided(plan, [200]))
    rates = {p.batch_size: p.learning_rate for p in from_run(recipe, recorded).points()}
    assert rates == {16: 0.1, 32: pytest.approx(0.1 * math.sqrt(2)), 64: pytest.approx(0.2)}
    wrong = "segment 1 of the recorded plan .* rate 0.141421, but .* exponent=1 has 0.2 there; use"
    with pytest.raises(ValueError, match=wrong) as error:
        from_run(recipe, recorded, exponent=1.0)
    assert "\n" not in str(error.value)


def test_a_recorded_plan_keeps_its_jumps():
    """An update that starts just before a jump has the rate after it."""
    recipe = dataclasses.replace(RECIPE, curve=curves.step(0.1, (0.5, 1.5), 0.5))
    for plan in (grow(recipe, max_batch_size=64), decay(recipe)):
        recorded = plan.to_dict()
        early = [row for row in recorded["segments"] if "nominal_start_examples" in row]
        assert any(row["start_examples"] < row["nominal_start_examples"] for row in early)
        assert updates(from_run(recipe, recorded)) == updates(plan)
    for row in early:  # As a folder from before the field was written.
        del row["nominal_start_examples"]
    with pytest.raises(ValueError, match="segment 1 of the recorded plan starts with the learning"):
        from_run(recipe, recorded)
