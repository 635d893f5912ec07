"""Language and regression train by the same loop, on any devices; metrics have a direction."""

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import (
    NotInMemory,
    assert_close,
    change,
    checkpoints,
    run_experiment,
)

from batchgrow.config import make_experiment
from batchgrow.data.catalog import open_dataset
from batchgrow.data.datasets import ArrayDataset, SourceDataset
from batchgrow.data.text import ASCII
from batchgrow.experiment import Experiment, Outcome
from batchgrow.models.mlp import MLP
from batchgrow.optimizer import make_optimizer
from batchgrow.plan import Recipe, curves, grow
from batchgrow.tasks import Metric, Outputs
from batchgrow.tasks.regression import Regression
from configs import base, diabetes

WHOLE = {"run.num_devices": 1, "run.max_microbatch_size": 1000}
LAYOUTS = {
    "two devices": {"run.num_devices": 2},
    "eight devices": {"run.num_devices": 8},
    "micro-batches": {"run.num_devices": 1, "run.max_microbatch_size": 4},
    "devices and micro-batches": {"run.num_devices": 2, "run.max_microbatch_size": 2},
    "streamed": WHOLE | {"run.input": "streamed"},
}


# Regression has more layouts than language, which takes longer to compile.
EVERY = [("regression", name) for name in LAYOUTS]
EVERY += [
    pytest.param("language", name, marks=pytest.mark.slow)
    for name in ("two devices", "eight devices", "micro-batches")
]


def language(changes: dict[str, Any]) -> Experiment:
    """A transformer on Python's help texts: 10 updates of 8 windows, then 5 of 16."""
    config = base.get_config()
    config.name = "topics"
    config.task = ConfigDict({"name": "language"})
    config.data.name = "python_topics"
    config.data.context = 64
    config.model = ConfigDict(
        {
            "name": "transformer",
            "vocab_size": len(ASCII),
            "context": 64,
            "layers": 1,
            "heads": 2,
            "channels": 8,
            "dropout": 0.3,
        }
    )
    config.optimizer.name = "adamw"
    config.optimizer.epsilon = 1e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_on = "matrices"
    config.optimizer.clip_norm = 1.0
    config.recipe.batch_size = 8
    config.recipe.learning_rate = 0.01
    config.recipe.factor = 0.5
    windows = open_dataset("python_topics", "train", context=64).num_examples
    return make_experiment(change(config, small(windows) | changes))


def regression(changes: dict[str, Any]) -> Experiment:
    """A perceptron on the diabetes set: 10 updates of 8 patients, then 2 of 40."""
    config = diabetes.get_config("increasing_batch")
    config.model.features = (16,)
    config.model.dropout = 0.5
    return make_experiment(change(config, small(353) | changes))


def small(num_examples: int) -> dict[str, Any]:
    """160 examples; the batch grows after 80."""
    return {
        "recipe.num_epochs": 160 / num_examples,
        "recipe.boundaries_epochs": (80 / num_examples,),
        "plan.name": "grow",
        "log_every_epochs": 40 / num_examples,
        "evaluate_every_epochs": 160 / num_examples,
        "run.tensorboard": False,
        "run.progress": False,
        "run.eval_batch_size": 320,
    } | WHOLE


MAKE = {"language": language, "regression": regression}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From a task to its run on one device and in one pass."""
    return {
        name: run_experiment(make({}), tmp_path_factory.mktemp(name)) for name, make in MAKE.items()
    }


@pytest.mark.parametrize("name", MAKE)
def test_rows_have_the_metrics_of_the_task(name, whole):
    trained, task = whole[name], MAKE[name]({}).task
    assert trained.outcome is Outcome.FINISHED
    names = [metric.name for metric in task.metrics]
    assert names[0] == "loss"
    for row in trained.rows:
        assert {f"train_{name}" for name in names} <= row.keys()
        assert "train_accuracy" not in row
    assert {f"test_{name}" for name in names} <= trained.rows[-1].keys()
    tokens = {"language": 64}.get(name)  # of a window
    for row in trained.rows:
        assert row.get("tokens_seen") == (tokens and tokens * row["examples_seen"])
    sizes = [row["batch_size"] for row in trained.rows]
    assert len(set(sizes)) == 2 and sizes == sorted(sizes)
    assert all(np.isfinite(row["train_loss"]) for row in trained.rows)


def test_a_text_is_learned(whole):
    """From a uniform guess over its characters to below it; dropout is off in evaluation."""
    rows = whole["language"].rows
    assert rows[0]["train_loss"] == pytest.approx(np.log(len(ASCII)), rel=0.05)
    assert rows[-1]["test_loss"] < rows[0]["train_loss"] - 0.5
    last = rows[-1]
    assert last["test_perplexity"] == pytest.approx(np.exp(last["test_loss"]), rel=1e-6)
    assert last["test_bits_per_byte"] == pytest.approx(last["test_loss"] / np.log(2), rel=1e-6)


@pytest.mark.parametrize(("name", "layout"), EVERY)
def test_the_layout_changes_nothing_with_dropout(name, layout, whole, tmp_path):
    """Parameters, accumulators, sums and rows; masks belong to examples."""
    trained = run_experiment(MAKE[name](LAYOUTS[layout]), tmp_path)
    assert_close(trained.results, whole[name].results, 2e-4)


@pytest.mark.parametrize("name", MAKE)
def test_dropout_is_active(name, whole, tmp_path):
    off = run_experiment(MAKE[name]({"model.dropout": 0.0}), tmp_path / "off")
    first, expected = off.rows[0]["train_loss"], whole[name].rows[0]["train_loss"]
    assert first != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("stop_at", [40, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKE)
def test_a_resume_draws_the_same_masks(name, stop_at, whole, tmp_path):
    """Bit for bit on the same devices; to rounding error on others."""
    experiment = MAKE[name]({})
    for folder in ("same", "other"):
        stopped = run_experiment(experiment, tmp_path / folder, stop=lambda seen: seen >= stop_at)
        assert stopped.outcome is Outcome.PREEMPTED and max(stopped.states) == stop_at
    same = run_experiment(experiment, tmp_path / "same")
    end = max(whole[name].states)
    assert min(same.states) > stop_at and max(same.states) == end
    jax.tree.map(np.testing.assert_array_equal, same.states[end], whole[name].states[end])
    assert same.rows == whole[name].rows
    other = run_experiment(
        MAKE[name](LAYOUTS["eight devices"]), tmp_path / "other", override_config=True
    )
    assert_close(other.states[end], whole[name].states[end], 2e-4)


class Scripted(Regression):
    """Regression whose test score is given: the next of `scores` at each evaluation."""

    def __init__(self, better: Any, scores: list[float]):
        super().__init__(MLP((4,), 1), mean=152.0, std=77.0)
        object.__setattr__(self, "metrics", (Metric("score", better), Metric("loss", "lower")))
        object.__setattr__(self, "scores", iter(scores))

    def summarize(self, sums: Any) -> dict[str, float]:
        loss = sums["loss"] / sums["count"]
        score = next(self.scores) if sums["count"] == 89 else 0.0
        return {"loss": loss, "score": score}


@pytest.mark.parametrize(("better", "best"), [("lower", 120), ("higher", 80)])
def test_the_best_checkpoint_follows_the_direction_of_the_metric(better, best, tmp_path):
    every = 40 / 353
    changes = {"evaluate_every_epochs": every, "run.checkpoint_every_epochs": every}
    experiment = regression(
        changes | {"run.keep_checkpoints": 1, "plan.name": "decay", "run.updates_per_dispatch": 1}
    )
    task = Scripted(better, [2.0, 3.0, 1.0, 1.5])
    run_experiment(dataclasses.replace(experiment, task=task), tmp_path)
    assert checkpoints(tmp_path) == [best, 160]
    summary = json.loads((tmp_path / "summary.json").read_text())
    value = {"lower": 1.0, "higher": 3.0}[better]
    assert summary["best"] == {"metric": "test_score", "value": value}
    assert summary["final"]["test_score"] == 1.5


class Pairs:
    """A task of one's own, without Flax: which of two points has the larger weighted sum."""

    metrics = (Metric("loss", "lower"), Metric("wins", "higher", percent=True))

    def init(self, key: jax.Array, examples: Any) -> Any:
        return {"params": {"w": jnp.zeros(examples["pair"]["first"].shape[1:])}, "seen": {"n": 0.0}}

    def loss(self, variables: Any, examples: Any, keys: Any, *, train: bool) -> Outputs:
        first, second = examples["pair"]["first"], examples["pair"]["second"]
        margin = (first - second) @ variables["params"]["w"] * examples["sign"]
        seen = {"n": variables["seen"]["n"] + train * 1.0}
        return Outputs(jax.nn.softplus(-margin), {"seen": seen}, {"wins": margin > 0})

    def summarize(self, sums: Any) -> dict[str, Any]:
        """Numbers of NumPy's, which JSON does not know."""
        return {name: np.float32(sums[name] / sums["count"]) for name in ("loss", "wins")}


def make_pairs(seed: int) -> list[Any]:
    """As Python and NumPy make them: float64 and int64, nested."""
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(60, 2, 3))
    signs = np.where((pairs[:, 0] - pairs[:, 1]) @ np.array([1.0, -2.0, 0.5]) > 0, 1, -1)
    return [
        {"pair": {"first": first, "second": second}, "sign": int(sign)}
        for (first, second), sign in zip(pairs, signs, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "num_devices"), list(itertools.product(("resident", "streamed"), (1, 8)))
)
def test_a_task_of_ones_own_without_a_config(kind, num_devices, tmp_path):
    """Plain values only: any pytree of examples, any loss, model state of its own."""
    recipe = Recipe(
        batch_size=8,
        momentum=0.9,
        curve=curves.step(0.1, (1.0,), 0.5),
        num_examples=60,
        num_epochs=2.0,
    )
    data = [SourceDataset(make_pairs(seed)) for seed in (0, 1)]
    if kind == "resident":
        data = [whole_in_memory(source) for source in data]
    experiment = language({})  # for its cadence
    experiment = Experiment(
        name="pairs",
        task=Pairs(),
        train_data=data[0],
        test_data=data[1],
        plan=grow(recipe, max_batch_size=16),
        optimizer=make_optimizer("momentum", momentum=0.9, weight_decay=0.0),
        cadence=dataclasses.replace(experiment.cadence, log=40, evaluate=60, checkpoint=60),
        execution=dataclasses.replace(
            experiment.execution, input=kind, num_devices=num_devices, max_microbatch_size=None
        ),
    )
    trained = run_experiment(experiment, tmp_path)
    assert trained.outcome is Outcome.FINISHED
    assert trained.rows[-1]["test_wins"] > 0.9
    assert trained.rows[-1]["batch_size"] == 16
    last = trained.states[max(trained.states)]
    assert last.model_state["seen"]["n"] == trained.rows[-1]["updates"]
    task = json.loads((tmp_path / "task.json").read_text())
    assert [metric["name"] for metric in task["metrics"]] == ["loss", "wins"]


def whole_in_memory(source: SourceDataset) -> Any:
    return ArrayDataset(source.gather(np.arange(source.num_examples)))


def test_examples_that_are_only_given_on_request_train_alike(whole, tmp_path):
    experiment = regression({"run.input": "streamed"})
    experiment = dataclasses.replace(
        experiment,
        train_data=NotInMemory(experiment.train_data),
        test_data=NotInMemory(experiment.test_data),
    )
    trained = run_experiment(experiment, tmp_path)
    assert_close(trained.results, whole["regression"].results, 1e-5)
