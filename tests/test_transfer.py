"""Starting from the layers of another run, and frozen layers."""

import shutil

import jax
import numpy as np
import pytest
from tiny import make_config

from batchgrow.config import make_experiment
from batchgrow.engine import Engine
from batchgrow.layout import make_mesh
from batchgrow.run import variables as saved
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.run.folder import run_folder
from batchgrow.run.variables import read_variables
from batchgrow.tasks.transfer import by_name, matching
from batchgrow.train import train
from experiments.lab.solutions import experiment_of_run, load

NEW = "*,!Dense_1"  # all layers but the classifier


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run that keeps an average of its parameters."""
    folder = tmp_path_factory.mktemp("source") / "run"
    train(make_experiment(make_config({"optimizer.average_epochs": 0.1})), str(folder))
    return folder


def initial(changes):
    experiment = make_experiment(make_config(changes))
    with Engine(experiment, make_mesh(1)) as engine:
        return by_name(jax.device_get(dict(engine.initial_state().evaluated)))


def restored(folder):
    """The state of the newest checkpoint, read with the model that it belongs to."""
    experiment = experiment_of_run(folder)
    metric, settings = experiment.task.metrics[0], dict(experiment.settings)
    with (
        Engine(experiment, make_mesh(1)) as engine,
        Checkpoints(run_folder(folder), keep=1, metric=metric, config=settings) as checkpoints,
    ):
        _, state, _ = checkpoints.restore(engine.state)
        return state


def same(a, b, names):
    return all(np.array_equal(a[name], b[name]) for name in names)


def test_the_last_matching_pattern_decides():
    names = ["params/a/conv/kernel", "params/b/conv/kernel", "params/b/norm/scale", "params/w"]
    assert matching(names, "*") == set(names)
    assert matching(names, "b") == set(names[1:3])
    assert matching(names, "*,!b,b/norm") == {names[0], *names[2:]}
    assert matching(names, "*/conv") == set(names[:2])
    assert matching(names, "") == set()
    with pytest.raises(ValueError, match="'!c' matches no layer; the layers are a/conv, b/conv"):
        matching(names, "*,!c")


@pytest.mark.slow
def test_reads_what_a_run_evaluates(source):
    """The average, from the folder or a checkpoint in it, without the model."""
    state = restored(str(source))
    expected = by_name(jax.device_get(dict(state.evaluated)))
    params = by_name({"params": jax.device_get(state.params)})
    assert not same(expected, params, params)
    newest = max((source / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for place in (source, newest):
        found = by_name(read_variables(str(place)))
        assert found.keys() == expected.keys() and same(found, expected, expected)


def test_a_changed_number_is_noticed():
    tree = {"a": np.ones(3, np.float32)}
    state = {"params": tree, "model_state": {}, "sums": {"count": np.float32(0)}}
    sums = np.asarray(saved.digest(state))
    assert saved._verified({"state": state, "digest": sums}) == {"params": tree}
    with pytest.raises(ValueError, match="checksum"):
        saved._verified({"state": state | {"params": {"a": tree["a"] * 2}}, "digest": sums})


def test_a_changed_number_of_an_average_is_noticed():
    """The average, which evaluation takes, stands before the sums in the checksums."""
    tree, average = ({"a": np.full(3, value, np.float32)} for value in (1, 2))
    state = {"params": tree, "model_state": {}, "average": average}
    state["sums"] = {"count": np.float32(0)}
    sums = np.asarray(saved.digest(tuple(state.values())))
    assert saved._verified({"state": state, "digest": sums}) == {"params": average}
    for name in ("params", "average"):
        changed = state | {name: {"a": state[name]["a"] * 2}}
        with pytest.raises(ValueError, match="checksum"):
            saved._verified({"state": changed, "digest": sums})


def test_starts_from_the_layers_that_match(source):
    theirs, drawn = by_name(read_variables(str(source))), initial({"seed": 3})
    mine = initial({"seed": 3, "init.run": str(source), "init.layers": NEW})
    new = {name for name in mine if "Dense_1" in name}
    assert len(new) == 2 and "batch_stats/GhostBatchNorm_0/mean" in mine
    assert same(mine, theirs, mine.keys() - new) and same(mine, drawn, new)
    assert not np.array_equal(mine["params/Dense_1/kernel"], theirs["params/Dense_1/kernel"])
    whole = initial({"seed": 3, "init.run": str(source)})
    assert same(whole, theirs, theirs)


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adamw", marks=pytest.mark.slow)])
def test_frozen_layers_keep_their_bits(source, tmp_path, optimizer):
    """Through a growth, with weight decay, L1 and the measured noise of the gradient."""
    changes = {
        "init.run": str(source),
        "init.layers": NEW,
        "init.frozen": NEW,
        "optimizer.name": optimizer,
        "optimizer.weight_decay": 0.1,
        "optimizer.l1": 0.1,
        "recipe.learning_rate": 0.01,
        "noise.share": 0.5,
        "noise.num_pieces": 2,
    }
    folder = str(tmp_path / "run")
    train(make_experiment(make_config(changes)), folder)
    before, after = by_name(read_variables(str(source))), by_name(read_variables(folder))
    frozen = {name for name in before if name.startswith("params") and "Dense_1" not in name}
    assert len(frozen) == 3 and same(before, after, frozen)
    moved = before.keys() - frozen
    assert not any(np.array_equal(before[name], after[name]) for name in moved)
    norm = "batch_stats/GhostBatchNorm_0/mean"
    assert not np.array_equal(before[norm], after[norm])  # The statistics follow the data.


def test_frozen_layers_have_no_gradient():
    """So neither the clipped norm nor the measured noise counts them."""
    experiment = make_experiment(make_config({"init.frozen": "*,!Dense_1"}))
    task, examples = experiment.task, experiment.train_data.gather(np.arange(16))
    variables = dict(task.init(jax.random.key(0), examples))

    def loss(params):
        return task.loss(variables | {"params": params}, examples, None, train=False).losses.mean()

    gradient = by_name({"params": jax.grad(loss)(variables["params"])})
    assert {name for name, value in gradient.items() if np.any(value)} == {
        "params/Dense_1/kernel",
        "params/Dense_1/bias",
    }


@pytest.mark.slow
def test_a_run_outlives_its_source(source, tmp_path):
    """What a finished run holds can be looked at when the run that it started from is gone."""
    copy, folder = tmp_path / "copy", str(tmp_path / "run")
    shutil.copytree(source, copy)
    train(make_experiment(make_config({"init.run": str(copy), "init.frozen": NEW})), folder)
    shutil.rmtree(copy)
    experiment, variables = load(folder)
    examples = experiment.test_data.gather(np.arange(4))
    assert np.isfinite(experiment.task.loss(variables, examples, None, train=False).losses).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.num_classes": 12},
            r"params/Dense_1/bias is \(10,\) there and \(12,\) here; .*"
            r"init.layers to '\*,!Dense_1'",
        ),
        ({"init.layers": "conv"}, "init.layers 'conv': 'conv' matches no layer; the layers are"),
        ({"init.frozen": "Dense_2"}, "init.frozen 'Dense_2': 'Dense_2' matches no layer"),
        ({"init.run": None, "init.layers": "*"}, "init.layers is '\\*', but init.run is not set"),
        ({"init.run": "/nowhere"}, "init.run: /nowhere: no checkpoint here; name a run folder"),
        (
            {"model.name": "conv_net", "model.channels": 2, "model.dtype": None},
            "params/Conv_0/kernel is missing there; .* more; to draw these layers anew",
        ),
    ],
)
def test_what_cannot_be_taken_is_said_in_one_line(source, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        make_experiment(make_config({"init.run": str(source), **changes}))
    assert "\n" not in str(error.value)
