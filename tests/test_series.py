"""Windows of a series, SOCNN and its auxiliary loss, and the generated observations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import read_rows

from batchgrow.config import make_experiment
from batchgrow.data.catalog import open_part
from batchgrow.data.series import SeriesDataset, divided
from batchgrow.data.source import Source
from batchgrow.experiment import Outcome
from batchgrow.models import MLP, SOCNN
from batchgrow.tasks.regression import Regression
from batchgrow.train import train
from configs import series as config_file
from experiments.grid import changed
from experiments.lab import asynchronous
from experiments.lab import series as study

RNG = np.random.default_rng(0)


def test_windows():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    data = SeriesDataset(rows, 10 * rows[:, :1], 4)
    assert data.num_examples == 2 and data.facts["in_shape"] == (4, 2)
    found = data.gather(np.array([[1, 0]]))
    np.testing.assert_array_equal(found["x"], [[rows[1:5], rows[:4]]])
    np.testing.assert_array_equal(found["y"], [[[100], [80]]])
    on_device = jax.jit(lambda arrays, i: data.take(arrays, i))(data.arrays, np.array([1, 0]))
    np.testing.assert_array_equal(on_device["x"], found["x"][0])
    with pytest.raises(ValueError, match="data.context 6 must be .* less than the rows .*, 6"):
        SeriesDataset(rows, rows, 6)


def test_every_test_row_is_a_target_and_only_training_rows_set_the_scale():
    x, y = RNG.normal(3, 2, (50, 2)), RNG.normal(size=(50, 1))
    parts = divided(x, y, 5, 40, looks_back=True)
    assert [part.num_examples for part in parts.values()] == [35, 10]
    np.testing.assert_allclose(parts["train"].arrays["inputs"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(parts["train"].arrays["inputs"].std(0), 1, atol=1e-5)
    first = parts["test"].gather(np.array(0))
    np.testing.assert_allclose(first["y"], y[40], rtol=1e-6)
    np.testing.assert_allclose(first["x"][-1], (x[39] - x[:40].mean(0)) / x[:40].std(0), rtol=1e-5)
    assert parts["test"].facts["mean"] == pytest.approx(y[:40].mean())
    assert divided(x, y, 5, 40, looks_back=False)["test"].num_examples == 5
    two = divided(x, x, 5, 40, looks_back=True)["train"]
    assert "mean" not in two.facts and two.arrays["targets"].std(0) == pytest.approx([1, 1])


def write(path, names, table):
    np.savetxt(path, table, delimiter=",", header=",".join(names), comments="")


def test_a_series_in_a_csv_file(tmp_path):
    """Targets are the first channels unless the columns are named."""
    table = RNG.normal(size=(30, 3))
    write(tmp_path / "s.csv", ["a", "b", "c"], table)
    source = Source(f"series:{tmp_path}/s.csv", test_share=0.2, context=4, target="b")
    train_data, test_data = (open_part(source, part) for part in ("train", "test"))
    assert (train_data.num_examples, test_data.num_examples) == (20, 6)
    expected = divided(table[:, [1, 0, 2]], table[:, [1]], 4, 24, looks_back=True)["test"]
    for name in ("inputs", "targets"):
        np.testing.assert_array_equal(test_data.arrays[name], expected.arrays[name])
    chosen = Source(source.name, test_share=0.2, context=4, columns="c,b")
    assert open_part(chosen, "train").facts["in_shape"] == (4, 2)
    alone = Source(source.name, test_share=0.2, context=4, columns="c", target="c")
    assert open_part(alone, "train").facts["in_shape"] == (4, 1)
    write(tmp_path / "s_train.csv", ["a"], table[:20, :1])
    write(tmp_path / "s_test.csv", ["a"], table[20:, :1])
    split = Source(f"series:{tmp_path}/s_{{split}}.csv", context=4, target="a")
    assert [open_part(split, part).num_examples for part in ("train", "test")] == [16, 6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": None}, "data.context is not set; set it to the number of rows"),
        ({"context": 30}, "data.context 30 must be 1 or more and less than the rows"),
        ({"target": "d"}, "data.target 'd' must name columns of .*: a, b"),
        ({"target": None}, "data.target None must name columns"),
        ({"test_share": None}, "has one split; set data.test_share"),
    ],
)
def test_a_series_that_cannot_be_used(tmp_path, fields, message):
    write(tmp_path / "s.csv", ["a", "b"], RNG.normal(size=(20, 2)))
    fields = {"test_share": 0.2, "context": 4, "target": "a"} | fields
    with pytest.raises(ValueError, match=message) as error:
        open_part(Source(f"series:{tmp_path}/s.csv", **fields), "train")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def network():
    model = SOCNN(2, ghost_batch_size=4, channels=3, significance_layers=2)
    x = jnp.asarray(RNG.normal(size=(4, 6, 5)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=True)
    variables["params"]["weights"] = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
    return model, variables, x


def test_the_formula_of_socnn(network):
    model, variables, x = network
    (prediction, values), captured = model.apply(
        variables, x, train=False, capture_intermediates=True, mutable=["intermediates"]
    )

    def last(name):
        found = np.asarray(captured["intermediates"][f"{name}1_norm"]["__call__"][0])
        return np.where(found > 0, found, 0.1 * found)

    expected = last("offset") + np.asarray(x[..., :2])
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    share = np.exp(last("significance"))
    share /= share.sum(1, keepdims=True)
    total = (np.asarray(variables["params"]["weights"]) * expected * share).sum(1)
    np.testing.assert_allclose(prediction, total, rtol=1e-5, atol=1e-6)


def test_an_offset_sees_its_own_row_and_the_significance_its_neighbours(network):
    model, variables, x = network

    def of(x):
        return jax.tree.map(np.asarray, model.apply(variables, x, train=False)[1])

    moved = np.abs(of(x.at[:, 2].add(1.0)) - of(x)).max((0, 2))
    assert moved[2] > 0.1 and np.delete(moved, 2).max() == 0


def test_the_networks_of_the_study_have_equal_sizes():
    for sources in study.SOURCES:
        sizes = []
        for network in study.NETWORKS.values():
            config = changed(study.config(), network[sources])
            config.data.name = f"experiments.lab.asynchronous:sources{sources}"
            experiment = make_experiment(config)
            one = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype),
                experiment.train_data.example,
            )
            params = jax.eval_shape(experiment.task.init, jax.random.key(0), one)["params"]
            sizes.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
        assert max(sizes) < 1.05 * min(sizes), sizes


def test_the_auxiliary_loss_counts_in_training_only(network):
    model, variables, x = network
    examples = {"x": x, "y": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)}
    plain, helped = (Regression(model, auxiliary_weight=weight) for weight in (0.0, 0.1))
    for is_training in (True, False):
        one, other = (
            task.loss(variables, examples, None, train=is_training) for task in (plain, helped)
        )
        state = variables if not is_training else None
        outputs = model.apply(
            variables, x, train=is_training, mutable=["batch_stats"] if state is None else False
        )
        values = (outputs[0] if is_training else outputs)[1]
        more = np.square(np.asarray(values) - np.asarray(examples["y"])[:, None]).mean((1, 2))
        expected = np.asarray(one.losses) + (0.1 * more if is_training else 0)
        np.testing.assert_allclose(other.losses, expected, rtol=1e-5)
        summed = [
            {"count": 4.0, "loss": float(o.losses.sum())}
            | {name: float(value.sum()) for name, value in o.metrics.items()}
            for o in (one, other)
        ]
        first, second = (plain.summarize(sums) for sums in summed)
        assert second["rmse"] == pytest.approx(first["rmse"], rel=1e-5)
        assert second["r2"] == pytest.approx(first["r2"], rel=1e-4)
    alone = Regression(MLP((), 2), auxiliary_weight=0.1)
    params = alone.init(jax.random.key(0), examples)
    with pytest.raises(ValueError, match="the model returns no auxiliary predictions"):
        alone.loss(params, examples, None, train=True)
    with pytest.raises(ValueError, match="task.auxiliary_weight -1 must be 0 or more"):
        Regression(model, auxiliary_weight=-1)


def test_the_noise_of_each_source():
    """Of each four sources two add noise and two multiply by it; scales halve with every eight."""
    inputs, signal = asynchronous.observations(16, 40_000, np.random.default_rng(1))
    observed, durations, indicators = inputs[:, 0], inputs[:, 1], inputs[:, 2:]
    assert (indicators.sum(1) == 1).all() and durations.min() == 2
    assert durations.mean() == pytest.approx(1 + 1 / (1 - np.exp(-0.5)), rel=0.01)
    assert signal.std() == pytest.approx(1, rel=0.2)
    counts = indicators.sum(0)
    assert counts[15] / counts[0] == pytest.approx(1.1**15, rel=0.15)
    for source in range(16):
        rows = indicators[:, source] == 1
        noise = observed[rows] - signal[rows]
        noise = noise if source % 2 == 0 else noise / signal[rows]
        scale = 1.0 if source < 8 else 0.5
        assert np.sqrt(np.square(noise).mean()) == pytest.approx(scale, rel=0.06)
        is_binary = np.allclose(np.abs(noise), scale)
        assert is_binary == (source % 4 < 2)


@pytest.mark.slow
def test_socnn_learns_a_series_of_ones_own(tmp_path):
    """From a CSV file to a trained run, through a growth of the batch."""
    time = np.arange(300)
    wave = np.sin(time / 5)
    write(tmp_path / "wave.csv", ["hour", "wave"], np.column_stack([time % 24, wave]))
    fields = {
        "data.name": f"series:{tmp_path}/wave.csv",
        "data.target": "wave",
        "data.test_share": 0.2,
        "data.context": 8,
        "data.num_train_examples": None,
        "model.channels": 4,
        "model.significance_layers": 2,
        "ghost_batch_size": 16,
        "recipe.batch_size": 16,
        "recipe.learning_rate": 0.02,
        "plan.name": "grow",
        "plan.max_batch_size": 64.0,
        "run.tensorboard": False,
        "run.progress": False,
        "run.num_devices": 1,
    }
    experiment = make_experiment(changed(config_file.get_config(), fields))
    assert train(experiment, str(tmp_path / "run")) == Outcome.FINISHED
    rows = read_rows(tmp_path / "run")
    assert rows[0]["batch_size"] == 16 and rows[-1]["batch_size"] == 64
    assert rows[-1]["test_r2"] > 0.8
