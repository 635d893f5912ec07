"""The landscape of a quadratic whose spectrum is known, and of a real run."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import own
import pytest
from tiny import checkpoints, make_config, read_rows, run_experiment, tiny_experiment

from batchgrow import landscape
from batchgrow.config import make_experiment
from batchgrow.tasks import Metric, Outputs
from experiments.lab import solutions
from experiments.lab.solutions import experiment_of_run

ROOT = pathlib.Path(__file__).parents[1]
EIGENVALUES = np.array([10.0, 4.0, 1.0, 0.5, 0.1, -2.0])


@pytest.fixture(scope="module")
def rotation():
    return np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]


@pytest.fixture(scope="module")
def quadratic(rotation):
    """0.25 + x^T H x / 2, H with the eigenvalues above."""
    hessian = jnp.asarray(rotation @ np.diag(EIGENVALUES) @ rotation.T, jnp.float32)
    return landscape.objective_of_function(lambda x: 0.25 + x @ hessian @ x / 2)


def test_a_folder_of_runs_is_not_a_run(tmp_path):
    for name in ("decaying_lr", "hybrid"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a folder of runs; give one of them: .*hybrid"):
        experiment_of_run(str(tmp_path))
    with pytest.raises(ValueError, match="no such folder; give run folders"):
        experiment_of_run(str(tmp_path / "missing"))


def test_a_run_without_a_limit_can_be_measured(tmp_path):
    run_experiment(tiny_experiment({"plan.max_batch_size": math.inf}), tmp_path)
    assert experiment_of_run(str(tmp_path)).settings["plan"]["max_batch_size"] == math.inf


def test_lanczos_finds_the_whole_spectrum_of_a_quadratic(quadratic):
    found = landscape.spectrum(quadratic, jnp.zeros(6), num_steps=6)
    np.testing.assert_allclose(found.eigenvalues, sorted(EIGENVALUES)[::-1], atol=1e-4)
    assert found.weights.sum() == pytest.approx(1)
    places = np.linspace(-10, 20, 3001)
    density = found.density(places, width=0.2)
    assert np.trapezoid(density, places) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(density * places, places) == pytest.approx(
        float(found.eigenvalues @ found.weights), abs=1e-2
    )


def test_few_steps_find_the_ends_of_a_large_spectrum():
    """1,000 eigenvalues up to 1, and two outside."""
    values = np.concatenate([np.linspace(0, 1, 1000), [7.0, -3.0]]).astype(np.float32)
    objective = landscape.objective_of_function(lambda x: jnp.sum(values * x**2) / 2)
    found = landscape.spectrum(objective, jnp.zeros(1002), num_steps=25)
    assert found.eigenvalues[0] == pytest.approx(7, rel=1e-4)
    assert found.eigenvalues[-1] == pytest.approx(-3, rel=1e-4)
    # The weights are a quadrature: the mean eigenvalue of one random vector, to 1 / sqrt(1002).
    assert float(found.eigenvalues @ found.weights) == pytest.approx(values.mean(), abs=0.2)


def test_lanczos_stops_where_the_space_is_exhausted():
    objective = landscape.objective_of_function(lambda x: 3 * jnp.sum(x**2) / 2)
    found = landscape.spectrum(objective, jnp.zeros(50), num_steps=10)
    np.testing.assert_allclose(found.eigenvalues, [3.0], rtol=1e-5)
    flat = landscape.spectrum(landscape.objective_of_function(jnp.sum), jnp.zeros(5), num_steps=3)
    np.testing.assert_array_equal(flat.eigenvalues, [0.0])


def test_sharpness_of_a_bowl_is_its_value_at_a_corner():
    """f = 1 + sum h x^2 / 2 at 0 has its maximum over |y_i| <= e at the corners."""
    curvature = jnp.array([8.0, 2.0, 0.5])
    objective = landscape.objective_of_function(lambda x: 1 + jnp.sum(curvature * x**2) / 2)
    found = landscape.sharpness(objective, jnp.zeros(3), 0.1)
    assert found == pytest.approx(100 * (10.5 * 0.1**2 / 2) / 2, rel=1e-4)


def test_the_box_grows_with_the_parameters():
    """At x = 3 of f = x the box is e (3 + 1) wide: 100 * 4e / (1 + 3)."""
    objective = landscape.objective_of_function(lambda x: jnp.sum(x))
    assert landscape.sharpness(objective, jnp.array([3.0]), 0.01) == pytest.approx(1.0, rel=1e-3)


def test_losses_along_a_line():
    start, end = {"w": jnp.array([0.0, 2.0])}, {"w": jnp.array([4.0, 0.0])}
    losses = landscape.along_line(lambda v: v["w"].sum(), start, end, [-0.5, 0.0, 0.25, 1.0])
    assert losses == pytest.approx([1.0, 2.0, 2.5, 4.0])


def test_the_objective_is_the_mean_loss_of_the_task():
    experiment = tiny_experiment()
    examples = experiment.test_data.gather(np.arange(60))
    variables = experiment.task.init(jax.random.key(0), jax.tree.map(jnp.asarray, examples))
    objective, x = landscape.objective_of(experiment.task, variables, examples, chunk_size=20)
    whole = experiment.task.loss(variables, examples, None, train=False).losses.mean()
    value, gradient = objective.value_and_gradient(x)
    assert float(value) == pytest.approx(float(whole), rel=1e-6)
    direction = jax.random.normal(jax.random.key(1), x.shape)
    direction = direction / jnp.linalg.norm(direction)
    step = 3e-3
    ahead, behind = (objective.value_and_gradient(x + s * direction) for s in (step, -step))
    assert float(ahead[0] - behind[0]) / (2 * step) == pytest.approx(
        float(gradient @ direction), rel=2e-2
    )
    product = objective.hessian_vector(x, direction)
    np.testing.assert_allclose(
        product, (ahead[1] - behind[1]) / (2 * step), atol=0.05 * np.abs(product).max()
    )
    with pytest.raises(ValueError, match="60 examples are less than a chunk of 61"):
        landscape.objective_of(experiment.task, variables, examples, chunk_size=61)


class Numbered:
    """A line whose parameters have numbers as names, and a list."""

    inputs = (("x",), ("y",))
    metrics = (Metric("loss", "lower"),)

    def init(self, key, examples):
        params = {2: jnp.zeros(3), 10: jnp.zeros(1)}
        return {"params": {"slopes": params, "rest": [jnp.zeros(2), jnp.ones(())]}}

    def loss(self, variables, examples, keys, *, train):
        params = variables["params"]
        slopes = params["slopes"]
        found = examples["x"] @ slopes[2] + slopes[10][0] + params["rest"][0].sum()
        losses = (found * params["rest"][1] - examples["y"].sum(-1)) ** 2
        return Outputs(losses, {}, {})

    def summarize(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


def points(split: str) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}


def test_a_task_with_numbers_as_names_is_measured(tmp_path, monkeypatch):
    changes = {"recipe.batch_size": 50, "plan.max_batch_size": 100}
    config = own.make_config("test_landscape:points", changes, task="test_landscape:Numbered")
    _, row = own.train_twice(config, tmp_path / "run")
    found = solutions.measure(str(tmp_path / "run"), [1e-3], 500, num_steps=0)
    assert found["loss"] == pytest.approx(row["test_loss"], rel=1e-5)
    monkeypatch.setattr(Numbered, "init", lambda *_: {"params": {"slopes": {2: jnp.zeros(4)}}})
    with pytest.raises(
        ValueError, match=r"params/slopes/2 has the shape \(3,\), but the task has it with"
    ):
        solutions.load(str(tmp_path / "run"))


TRACED = {"trace.per_decade": 2, "run.keep_traced": True, "run.updates_per_dispatch": 1}


@pytest.mark.slow
def test_a_trace_is_the_path_of_the_parameters(tmp_path):
    """Against the states after every update: 11 updates of 32, then 3 of 128."""
    trained = run_experiment(tiny_experiment(TRACED), tmp_path)
    ends = sorted(trained.states)
    params = [
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(trained.states[end].params)])
        for end in ends
    ]
    start = run_experiment(tiny_experiment(TRACED), tmp_path / "x", stop=lambda _: True)
    assert start.outcome.value == "preempted"
    rows = {row["examples_seen"]: row for row in read_rows(tmp_path)}
    assert {32, 96, 320, 352, 480} <= rows.keys()  # after 1, 3, 10 updates, the growth, 1 more
    steps = [float(np.linalg.norm(b - a)) for a, b in zip(params, params[1:], strict=False)]
    for before, after in ((96, 320), (320, 736)):
        length = rows[after]["path_length"] - rows[before]["path_length"]
        between = slice(ends.index(before), ends.index(after))
        assert length == pytest.approx(sum(steps[between]), rel=1e-4)
    assert rows[736]["step_norm"] == pytest.approx(steps[-1], rel=1e-4)
    moved = float(np.linalg.norm(params[ends.index(736)] - params[ends.index(32)]))
    assert rows[736]["distance"] == pytest.approx(moved, abs=1.01 * rows[32]["distance"])
    assert rows[32]["distance"] == pytest.approx(rows[32]["path_length"], rel=1e-4)
    momentum = jax.tree.leaves(trained.states[736].opt_state)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in momentum))
    assert rows[736]["momentum_norm"] == pytest.approx(norm, rel=1e-5)
    assert checkpoints(tmp_path) == [32, 96, 320, 352, 480, 736]


def test_a_trace_changes_nothing_and_resumes(tmp_path):
    plain = run_experiment(tiny_experiment(), tmp_path / "plain")
    traced = run_experiment(tiny_experiment(TRACED), tmp_path / "traced")
    for a, b in zip(
        jax.tree.leaves(plain.states[736].params),
        jax.tree.leaves(traced.states[736].params),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    run_experiment(tiny_experiment(TRACED), tmp_path / "cut", stop=lambda seen: seen == 416)
    run_experiment(tiny_experiment(TRACED), tmp_path / "cut")
    whole, cut = (read_rows(tmp_path / name) for name in ("traced", "cut"))
    keys = ("examples_seen", "distance", "path_length", "step_norm", "momentum_norm")
    assert [[row[k] for k in keys] for row in whole] == [[row[k] for k in keys] for row in cut]
    assert checkpoints(tmp_path / "cut") == [32, 96, 320, 352, 480, 736]


@pytest.mark.slow
def test_the_command_measures_two_runs(tmp_path):
    config = ["--config=configs/digits.py", "--config.recipe.num_epochs=1"]
    config += ["--config.recipe.boundaries_epochs=()", "--config.model.channels=2"]
    config += ["--config.trace.per_decade=4", "--config.run.tensorboard=False"]
    config += ["--config.run.keep_checkpoints=9", "--config.run.checkpoint_every_epochs=0.5"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}

    def command(*flags):
        line = [sys.executable, "-m", *map(str, flags)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=env)

    for seed in (0, 1):
        flags = [*config, f"--config.seed={seed}", f"--workdir={tmp_path}/{seed}"]
        assert command("experiments.train", *flags).returncode == 0
    runs = [tmp_path / "0", tmp_path / "1"]
    flags = ["--examples=1000", "--lanczos_steps=5", "--line_points=5", f"--out={tmp_path}/out"]
    done = command("experiments.landscape", *runs, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/landscape.json").read_text())
    assert len(found["runs"]) == 2
    for facts in found["runs"].values():
        assert facts["sharpness"]["0.001"] > facts["sharpness"]["0.0005"] > 0
        assert len(facts["eigenvalues"]) == 5 and facts["eigenvalues"][0] > 0
        assert facts["distance"][-1][0] == 90
    place, train = found["line"]["place"], found["line"]["train_loss"]
    assert place == [-0.5, 0.0, 0.5, 1.0, 1.5]
    # The ends of the line are the solutions: their losses are those measured by themselves.
    alone = [facts["loss"] for facts in found["runs"].values()]
    assert [train[1], train[3]] == pytest.approx(alone, rel=1e-4)
    assert (tmp_path / "out/landscape.png").stat().st_size > 10_000
    assert found["position"] is None
    assert {facts["examples"] for facts in found["runs"].values()} == {1000}
    # So they are at an earlier checkpoint.
    position = checkpoints(runs[0])[0]
    flags += [f"--position={position}", "--lanczos_steps=0", "--epsilons=1e-3"]
    again = command("experiments.landscape", *runs, *flags)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "out/landscape.json exists and is not replaced; move it, or" in again.stderr
    flags.append(f"--out={tmp_path}/early")
    assert command("experiments.landscape", *runs, *flags).returncode == 0
    found = json.loads((tmp_path / "early/landscape.json").read_text())
    early = [facts["loss"] for facts in found["runs"].values()]
    train = found["line"]["train_loss"]
    assert [train[1], train[3]] == pytest.approx(early, rel=1e-4)
    assert found["position"] == position and early != pytest.approx(alone, rel=1e-2)
    wrong = command("experiments.landscape", runs[0], "--position=3", f"--out={tmp_path}/no")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "has no checkpoint at 3 examples; it has" in wrong.stderr


def test_next_rows_of_a_trace():
    cadence = make_experiment(make_config({"trace.per_decade": 1})).cadence
    (first, second) = make_experiment(make_config()).plan.segments
    assert cadence.next_trace(0, first) == 32
    assert cadence.next_trace(32, first) == 320
    assert cadence.next_trace(320, first) == 3200
    assert cadence.next_trace(second.start_examples, second) == second.start_examples + 128
