"""A language model with dropout, trained by the engine: one trajectory on any layout."""

import json

import numpy as np
import pytest

from batchgrow.data.text import TextDataset
from batchgrow.experiment import Cadence, Execution, Experiment, Outcome
from batchgrow.models import Transformer
from batchgrow.optimizer import make_optimizer
from batchgrow.plan import Recipe, curves, grow
from batchgrow.tasks.language import LanguageModel
from batchgrow.train import train

TOKENS = np.random.default_rng(0).integers(0, 7, 520).astype(np.uint8)


def make_experiment(dropout=0.3, **execution):
    """64 examples, then 64 in a batch twice as large."""
    data = TextDataset(TOKENS, context=8)
    recipe = Recipe(8, 0.9, curves.step(1e-2, (1.0,), 0.5), data.num_examples, 2.0)
    execution = {"tensorboard": False, "progress": False, "num_devices": 1, **execution}
    return Experiment(
        name="language",
        task=LanguageModel(Transformer(7, 8, layers=1, heads=2, channels=8, dropout=dropout)),
        train_data=data,
        test_data=data,
        plan=grow(recipe, max_batch_size=16),
        optimizer=make_optimizer(
            "adamw", momentum=0.9, weight_decay=0.1, decay_on="matrices", clip_norm=1.0
        ),
        cadence=Cadence(log=16, evaluate=64, checkpoint=32),
        execution=Execution(**execution),
    )


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(workdir):
    return [
        row[name] for row in rows(workdir) for name in ("train_loss", "test_loss") if name in row
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference")
    assert train(make_experiment(), str(workdir)) == Outcome.FINISHED
    return workdir


def test_rows_name_the_tasks_metrics(reference):
    last = rows(reference)[-1]
    assert (last["examples_seen"], last["batch_size"]) == (128, 16)
    for split in ("train", "test"):
        loss = last[f"{split}_loss"]
        assert last[f"{split}_perplexity"] == pytest.approx(np.exp(loss))
        assert last[f"{split}_bits_per_byte"] == pytest.approx(loss / np.log(2))
    task = json.loads((reference / "task.json").read_text())
    assert [metric["name"] for metric in task["metrics"]] == ["loss", "perplexity", "bits_per_byte"]


def test_dropout_changes_the_trajectory(reference, tmp_path):
    train(make_experiment(dropout=0.0), str(tmp_path))
    assert not np.allclose(losses(tmp_path), losses(reference), rtol=1e-3)


@pytest.mark.parametrize(
    "execution",
    [
        pytest.param({"num_devices": 4}, marks=pytest.mark.slow),
        {"num_devices": 2, "max_microbatch_size": 2, "input": "streamed"},
    ],
    ids=str,
)
def test_masks_do_not_depend_on_the_layout(reference, tmp_path, execution):
    train(make_experiment(**execution), str(tmp_path))
    np.testing.assert_allclose(losses(tmp_path), losses(reference), rtol=1e-4)


def test_masks_do_not_depend_on_a_resume(reference, tmp_path):
    stop = train(make_experiment(), str(tmp_path), watch=lambda point, _: point.end_examples >= 48)
    assert stop == Outcome.PREEMPTED
    assert train(make_experiment(), str(tmp_path)) == Outcome.FINISHED
    assert losses(tmp_path) == losses(reference)
