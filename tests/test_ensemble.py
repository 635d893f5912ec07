"""Averages of finished runs: closed forms, a real run, and the command."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import make_config, read_rows

from batchgrow.config import make_experiment
from batchgrow.train import train
from experiments import ensemble
from experiments.lab import averages

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in the seed, with three checkpoints each."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        changes = {
            "seed": seed,
            "run.checkpoint_every_epochs": 0.1,
            "run.keep_checkpoints": 3,
            "recipe.learning_rate": 0.05,
        }
        train(make_experiment(make_config(changes)), str(root / str(seed)))
    return [str(root / "0"), str(root / "1")]


def test_scores_by_hand():
    found = averages.score(np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]), np.array([0, 0, 0]))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(-np.log([0.5, 0.2, 0.9]).mean())


@pytest.mark.slow
def test_one_run_has_the_numbers_of_its_last_row(runs):
    experiment, several = averages.last(runs[0], 1)
    probabilities = averages.probabilities(experiment, several[0])
    found = averages.score(probabilities, averages.labels_of(experiment))
    row = read_rows(pathlib.Path(runs[0]))[-1]
    assert found.accuracy == pytest.approx(row["test_accuracy"], abs=1e-6)
    assert found.loss == pytest.approx(row["test_loss"], rel=1e-4)


@pytest.mark.slow
def test_mean_weights_have_statistics_of_their_own(runs):
    experiment, several = averages.last(runs[0], 3)
    mean = averages.mean_weights(experiment, several)
    kernels = [variables["params"]["Dense_0"]["kernel"] for variables in several]
    np.testing.assert_allclose(mean["params"]["Dense_0"]["kernel"], np.mean(kernels, 0), rtol=1e-5)
    # The renewed mean of the norm is that of its inputs over the training set.
    data = experiment.train_data.gather(np.arange(1437))
    x = averages.task_of(experiment)._normalised(data["image"]).reshape(1437, -1)
    expected = np.asarray(x @ mean["params"]["Dense_0"]["kernel"]).mean(0)
    found = mean["batch_stats"]["GhostBatchNorm_0"]["mean"]
    old = np.mean([v["batch_stats"]["GhostBatchNorm_0"]["mean"] for v in several], 0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=0.15 * scale)
    assert not np.allclose(found, old, atol=1e-4 * scale)


@pytest.mark.slow
def test_the_table_of_two_runs(runs):
    rows = ensemble.scores_of(runs, 2)
    assert len(rows) == 3 * 3
    both = [averages.last(run, 1) for run in runs]
    each = [averages.probabilities(experiment, found[0]) for experiment, found in both]
    labels = averages.labels_of(both[0][0])
    expected = averages.score(np.mean(each, 0), labels)
    assert rows["mean probabilities of 2 runs: newest"] == expected
    # Cross entropy is convex: a mean is never worse than the mean of the losses.
    assert expected.loss <= np.mean([averages.score(p, labels).loss for p in each])


@pytest.mark.slow
def test_too_few_checkpoints(runs):
    with pytest.raises(ValueError, match="has 3 checkpoints and not 9; train with run.keep_check"):
        averages.last(runs[0], 9)


@pytest.mark.slow
def test_the_probabilities_of_a_task_are_those_of_its_loss(runs):
    experiment, (variables,) = averages.last(runs[0], 1)
    task = averages.task_of(experiment)
    examples = jax.tree.map(np.asarray, experiment.test_data.gather(np.arange(5)))
    probabilities = np.asarray(task.probabilities(variables, examples))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    losses = task.loss(variables, examples, None, train=False).losses
    np.testing.assert_allclose(
        losses, -np.log(probabilities[np.arange(5), examples["label"]]), rtol=1e-4
    )


@pytest.mark.slow
def test_the_command(runs):
    line = [sys.executable, "-m", "experiments.ensemble", *runs, "--last=3", "--views=flip"]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "tests"}
    )
    assert done.returncode == 0, done.stderr
    assert "mean weights of the last 3" in done.stdout
    assert "mean probabilities of 2 runs: newest, views flip" in done.stdout


@pytest.mark.slow
def test_views_are_averaged(runs):
    experiment, (variables,) = averages.last(runs[0], 1)
    of_images = averages.task_of(experiment).probabilities
    data = experiment.test_data.gather(np.arange(experiment.test_data.num_examples))
    mirrored = data | {"image": data["image"][:, :, ::-1]}
    mean = (of_images(variables, data) + of_images(variables, mirrored)) / 2
    expected = averages.score(np.asarray(mean), np.asarray(data["label"]))
    found = ensemble.scores_of([runs[0]], views=["flip"])[f"{runs[0]}: newest, views flip"]
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    with pytest.raises(ValueError, match="unknown task.test_views 'flips'; choose one, flip, "):
        ensemble.scores_of([runs[0]], views=["flips"])
