"""`train` from an experiment to the summary, on tiny runs."""

import dataclasses
import json
import pathlib
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import simplejpeg
import tensorstore
from tiny import (
    NotInMemory,
    assert_close,
    checkpoints,
    make_config,
    num_compilations,
    read_rows,
    run_experiment,
    run_tiny,
    tiny_experiment,
    train_without_compiling,
)

from batchgrow.config import make_experiment, make_plan
from batchgrow.data import jpeg
from batchgrow.data.catalog import load_images
from batchgrow.data.datasets import ArrayDataset
from batchgrow.data.jpeg_dataset import JpegDataset
from batchgrow.data.records import BadRecordError
from batchgrow.data.stream import Stream
from batchgrow.engine import Engine
from batchgrow.experiment import NonFiniteLoss, Outcome
from batchgrow.layout import make_mesh
from batchgrow.plan import curves
from batchgrow.run import timers
from batchgrow.run.run import Run
from batchgrow.tasks import Outputs
from batchgrow.tasks.classification import Classification
from batchgrow.train import train
from batchgrow.update import CPU_PASS

PLAN = make_plan(make_config(), 1437)
NEVER = {"log_every_epochs": 100.0, "evaluate_every_epochs": 100.0}


def read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def test_rows_follow_the_plan(tmp_path):
    """Each row holds what the plan says of its last update; rows end where updates end."""
    before = num_compilations()
    trained = run_tiny(tmp_path)
    assert num_compilations() > before  # so that `train_without_compiling` can fail
    assert trained.outcome is Outcome.FINISHED
    assert [row["examples_seen"] for row in trained.rows] == [160, 288, 352, 480, 608, 736]
    points = {point.end_examples: point for point in PLAN.points()}
    for row in trained.rows:
        point = points[row["examples_seen"]]
        assert row["updates"] == point.update + 1
        assert row["segment"] == point.segment
        assert row["batch_size"] == point.batch_size
        assert row["epoch"] == row["examples_seen"] / 1437
        for name in ("learning_rate", "momentum", "noise_scale"):
            assert row[name] == pytest.approx(getattr(point, name), rel=1e-12)
        recipe = PLAN.recipe
        reference = recipe.learning_rate_at(min(row["examples_seen"], 718) - 1) / 0.1 * 1437 / 32
        assert row["noise_scale"] == pytest.approx(reference, rel=1e-6)
    assert trained.rows[-1]["updates"] == PLAN.num_updates == 14
    tested = [row["examples_seen"] for row in trained.rows if "test_loss" in row]
    assert tested == [480, 736]


def test_every_example_is_trained_on_once(tmp_path):
    """What the host reads for the devices is the stream, in order; a row for each segment."""
    data = NotInMemory(load_images("digits", "train"))
    changes = NEVER | {"seed": 3, "run.input": "streamed", "run.num_devices": 4}
    trained = run_experiment(tiny_experiment(changes, train_data=data), tmp_path)
    indices = np.concatenate([indices.ravel() for indices in data.gathered])
    np.testing.assert_array_equal(indices, Stream(1437, seed=3).indices(np.arange(736)))
    assert [row["examples_seen"] for row in trained.rows] == [352, 736]
    assert trained.states[352].sums["count"] == 0


class Counting(Classification):
    """Classification that adds up the numbers of the examples, and notes all sums."""

    def __init__(self, task: Classification):
        super().__init__(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)})
        object.__setattr__(self, "summed", [])

    def loss(self, variables: Any, examples: Any, keys: Any, *, train: bool) -> Outputs:
        outputs = super().loss(variables, examples, keys, train=train)
        number = examples["number"].astype(np.float32)
        return outputs._replace(metrics=outputs.metrics | {"number": number})

    def summarize(self, sums: Any) -> dict[str, float]:
        self.summed.append(dict(sums))
        return super().summarize(sums)


def numbered(split: str) -> ArrayDataset:
    """The digits with a number for each, and a weight of its own for each power."""
    arrays = load_images("digits", split).arrays
    return ArrayDataset({**arrays, "number": np.arange(len(arrays["label"])) % 97})


@pytest.mark.parametrize("in_memory", [True, False])
def test_evaluation_covers_every_test_example_once(in_memory, tmp_path):
    """360 examples in batches of 100 on 8 devices: 104 a batch, the last one padded."""
    experiment = tiny_experiment({"run.num_devices": 8})
    test = numbered("test")
    experiment = dataclasses.replace(
        experiment,
        task=(task := Counting(experiment.task)),
        train_data=numbered("train"),
        test_data=test if in_memory else NotInMemory(test),
    )
    run_experiment(experiment, tmp_path)
    evaluated = [sums for sums in task.summed if sums["count"] == 360]
    trained = [sums for sums in task.summed if sums["count"] != 360]
    assert [sums["number"] for sums in evaluated] == [test.arrays["number"].sum()] * 2
    assert sum(sums["count"] for sums in trained) == 736
    seen = Stream(1437, seed=0).indices(np.arange(736)) % 97
    assert sum(sums["number"] for sums in trained) == seen.sum()


class Tracing(Classification):
    """Classification that counts for which sizes training is traced."""

    traced: Counter[int] = Counter()

    def loss(self, variables: Any, examples: Any, keys: Any, *, train: bool) -> Outputs:
        if train:
            self.traced[len(examples["label"])] += 1
        return super().loss(variables, examples, keys, train=train)


@pytest.mark.parametrize("updates_per_dispatch", [1, 4])
def test_the_loss_is_traced_once_for_each_batch_size(updates_per_dispatch, tmp_path):
    """Nothing that changes from update to update may be baked into the program."""
    changes = {
        "task.name": "test_train:Tracing",
        "task.num_classes": 10,
        "run.max_microbatch_size": 128,
        "run.updates_per_dispatch": updates_per_dispatch,
        "recipe.warmup_epochs": 0.1,  # the learning rate changes at each update
    }
    experiment = tiny_experiment(changes)
    type(experiment.task).traced.clear()
    run_experiment(experiment, tmp_path)
    assert type(experiment.task).traced == {32: 1, 128: 1}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"run.updates_per_dispatch": 4}, marks=pytest.mark.slow),
        pytest.param({"run.input": "streamed"}, marks=pytest.mark.slow),
        {"run.input": "streamed", "run.updates_per_dispatch": 3, "run.num_devices": 2},
        {"run.compile_ahead": False, "run.eval_batch_size": 360},
    ],
    ids=["several updates per dispatch", "streamed", "streamed to two devices", "not ahead"],
)
def test_how_it_runs_does_not_change_the_result(changes, tmp_path):
    common = {"task.augment": "crop_flip", "run.updates_per_dispatch": 1}
    expected = run_tiny(tmp_path / "plain", common)
    actual = run_tiny(tmp_path / "other", common | changes)
    assert_close(actual.results, expected.results)


def test_processes_compare_the_layout_of_each_batch_size(tmp_path, monkeypatch):
    compared: dict[str, str] = {}
    monkeypatch.setattr(
        "batchgrow.run.run.check_agreement", lambda facts, *_: compared.update(facts)
    )
    run_tiny(tmp_path)
    assert [*compared] == [
        "the CPU kernels",
        "the layout of batch size 32",
        "the layout of batch size 128",
        "the size of an evaluation batch",
    ]
    assert "num_microbatches=" in compared["the layout of batch size 128"]


def test_run_folder(tmp_path):
    """The files of a finished run of the small conv net, and that it has learned something."""
    config = make_config({"recipe.num_epochs": 1.5, "recipe.boundaries_epochs": (1.0,)})
    config.model = {"name": "conv_net", "channels": 4, "num_classes": 10, "dtype": "float32"}
    config.run.tensorboard = True
    experiment = make_experiment(config)
    assert train(experiment, str(tmp_path)) is Outcome.FINISHED
    plan = make_plan(config, 1437)
    assert read(tmp_path / "config.json") == json.loads(config.to_json())
    assert read(tmp_path / "plan.json") == plan.to_dict(num_devices=1)
    task = read(tmp_path / "task.json")
    assert (task["format"], task["name"]) == (2, "Classification")
    assert task["metrics"][0] == {"name": "accuracy", "better": "higher", "percent": True}

    summary, rows = read(tmp_path / "summary.json"), read_rows(tmp_path)
    assert summary["num_updates"] == plan.num_updates == rows[-1]["updates"]
    assert summary["examples_seen"] == plan.end_examples == rows[-1]["examples_seen"]
    assert summary["final"]["test_accuracy"] == rows[-1]["test_accuracy"] > 0.6
    assert summary["final"]["train_loss"] == rows[-1]["train_loss"] < rows[0]["train_loss"]
    best = max(row.get("test_accuracy", 0) for row in rows)
    assert summary["best"] == {"metric": "test_accuracy", "value": best}
    seconds = summary["seconds"]
    assert sum(seconds.values()) == pytest.approx(summary["wall_seconds"], abs=0.1)
    assert seconds.keys() == {"compile", "input", "eval", "noise", "checkpoint", "step"}
    used = [seconds[name] for name in ("compile", "eval", "checkpoint", "step")]
    assert min(used) > 0 == seconds["noise"]
    assert [segment["batch_size"] for segment in summary["segments"]] == [32, 128]
    for segment in summary["segments"]:
        assert segment["num_microbatches"] == segment["batch_size"] // CPU_PASS
        assert segment.keys() >= {"compile_seconds", "waited_seconds", "cache_hit"}
    assert summary["devices"]["platform"] == "cpu" and summary["versions"]["jax"] == jax.__version__
    assert summary["devices"]["count"] == 1 < jax.device_count()  # those that were used
    assert list((tmp_path / "tensorboard").iterdir())

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    assert train_without_compiling(config, tmp_path) is Outcome.FINISHED  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before


@pytest.mark.parametrize("ahead", [True, False])
def test_the_loop_compiles_the_next_size_reads_ahead_and_drops_the_last(
    ahead, tmp_path, monkeypatch
):
    engines: list[Engine] = []
    keys: list[set[int]] = []
    caches: list[str] = []
    reads = Counter()

    class Noted(Engine):
        def __init__(self, *args: Any):
            super().__init__(*args)
            engines.append(self)

        def read_ahead(self, *args: Any) -> None:
            reads[len(keys)] += 1

    monkeypatch.setattr("batchgrow.train.Engine", Noted)
    monkeypatch.setattr("batchgrow.train.enable_compilation_cache", caches.append)

    def noted(_: int) -> bool:
        keys.append(engines[0].updates.keys())
        return False

    changes = {"run.updates_per_dispatch": 1, "run.compilation_cache_dir": "a cache"}
    run_tiny(tmp_path, changes | {"run.compile_ahead": ahead}, stop=noted)
    small, large = (segment.num_updates for segment in PLAN.segments)
    # The larger size from the second dispatch of the smaller one on, which is dropped in turn.
    both = {32, 128} if ahead else {32}
    assert keys == [{32}, *[both] * (small - 1), *[{128}] * large]
    assert reads == Counter(range(small + large))
    assert caches == ["a cache"]


def test_input_is_counted_where_the_devices_wait_for_it(tmp_path):
    """Each update waits for at least the time that its examples take to be read."""

    class Slow(NotInMemory):
        def gather(self, indices: np.ndarray) -> Any:
            time.sleep(0.05 * (indices.ndim == 3))
            return super().gather(indices)

    data = Slow(load_images("digits", "train"))
    changes = NEVER | {"run.input": "streamed"}
    run_experiment(tiny_experiment(changes, train_data=data), tmp_path)
    # The devices may still compute when the host has read; at first they cannot.
    assert read_rows(tmp_path)[-1]["input_seconds"] >= 0.05


@pytest.mark.parametrize("is_ready", [True, False])
def test_input_read_while_the_devices_compute_is_not_counted(is_ready, tmp_path):
    experiment = tiny_experiment()
    state: Any = SimpleNamespace(sums={"loss": SimpleNamespace(is_ready=lambda: is_ready)})
    with Run(experiment, str(tmp_path), make_mesh(1)) as run:
        with run.input_timer(state):
            pass
        assert (run._clock.seconds["input"] > 0) is is_ready


def test_divergence_names_the_updates_and_the_last_good_row(tmp_path):
    """A learning rate of 0 for the first update, then far too much; a row for every update."""
    exploding = {"recipe.learning_rate": 1e30, "recipe.warmup_epochs": 1e-6}
    with pytest.raises(NonFiniteLoss) as error:
        run_tiny(tmp_path, exploding | {"log_every_epochs": 0.02})
    rows = read_rows(tmp_path)
    assert [row["updates"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in rows)
    assert "between updates 3 and 3 (epoch 0.07, batch size 32" in str(error.value)
    last = f"the last good row, at update 2: train_loss {rows[-1]['train_loss']:.4g}"
    assert last in str(error.value)
    assert not (tmp_path / "summary.json").exists()


def test_divergence_in_the_first_row(tmp_path):
    with pytest.raises(NonFiniteLoss, match="between updates 1 and 5 .*no good row before"):
        run_tiny(tmp_path, {"recipe.learning_rate": 1e30})


class WrongAtTheEnd(Classification):
    """Classification whose loss of the test set is NaN."""

    def summarize(self, sums: Any) -> dict[str, float]:
        wrong = {"loss": float("nan")} if sums["count"] == 360 else {}
        return super().summarize(sums) | wrong


class Wrong(Classification):
    """Classification with a fault in what the run calls after updates."""

    def summarize(self, sums: Any) -> dict[str, float]:
        raise ValueError("shapes do not match")


def test_a_last_update_that_diverges_is_reported(tmp_path):
    task = {"task.name": "test_train:WrongAtTheEnd", "task.num_classes": 10}
    with pytest.raises(NonFiniteLoss, match="the loss is nan between updates"):
        run_tiny(tmp_path, task)


def test_a_value_error_while_training_is_not_bad_input(tmp_path):
    task = {"task.name": "test_train:Wrong", "task.num_classes": 10}
    with pytest.raises(RuntimeError, match="a fault of the program.*shapes do not match"):
        run_tiny(tmp_path, task)


class Refusing(nn.Module):
    """A model that does not accept what it is trained with, as `models.dropout` may say."""

    @nn.compact
    def __call__(self, image: Any, *, train: bool) -> Any:
        if train:
            raise ValueError("use nn.Dropout in it")
        return nn.Dense(10)(image.reshape(len(image), -1))


def test_a_model_that_cannot_be_traced_for_training_is_bad_input(tmp_path):
    experiment = tiny_experiment()
    task = Classification(Refusing(), num_classes=10)
    with pytest.raises(ValueError, match=r"^use nn.Dropout in it"):
        run_experiment(dataclasses.replace(experiment, task=task), tmp_path)


def test_start_up_is_no_training(tmp_path, monkeypatch):
    """The seconds before the first update do not count in the first row's examples per second."""
    ahead = [0.0]
    now = time.perf_counter
    clock = SimpleNamespace(perf_counter=lambda: now() + ahead[0])
    monkeypatch.setattr(timers, "time", clock)
    initial_state = Engine.initial_state

    def slow(engine: Engine) -> Any:
        ahead[0] += 1e6
        return initial_state(engine)

    monkeypatch.setattr(Engine, "initial_state", slow)
    run_tiny(tmp_path)
    first = read_rows(tmp_path)[0]
    assert first["wall_seconds"] > 1e6
    assert first["examples_seen"] / first["examples_per_second"] < 1e5


def test_segments_of_one_batch_size_waited_for_it_once(tmp_path):
    """The second finds it compiled, and does not replace what the first has waited."""
    changes = {"plan.name": "decay", "recipe.boundaries_epochs": (0.1,)}
    run_tiny(tmp_path, changes | {"run.compilation_cache_dir": str(tmp_path / "cache")})
    segments = read(tmp_path / "summary.json")["segments"]
    assert len(segments) == 2
    for segment in segments:
        assert segment["waited_seconds"] >= 0.5 * segment["compile_seconds"] > 0


def test_the_end_of_a_segment_alone_makes_no_checkpoint(tmp_path):
    changes = {
        "plan.name": "decay",
        "recipe.boundaries_epochs": (0.1, 0.2, 0.3, 0.4),
        "run.checkpoint_every_epochs": 0.24,
        "run.keep_checkpoints": 10,
    }
    experiment = tiny_experiment(changes)
    assert len(experiment.plan.known()) == 5
    run_experiment(experiment, tmp_path)
    assert checkpoints(tmp_path) == [352, 704]


def test_no_checkpoint_of_a_diverged_run(tmp_path):
    """Where rows are rarer than checkpoints: the one after the first update stays the last."""
    changes = {
        "recipe.learning_rate": 1e30,
        "log_every_epochs": 9.0,
        "evaluate_every_epochs": 9.0,
        "run.checkpoint_every_epochs": 0.02,
        "run.updates_per_dispatch": 1,
    }
    with pytest.raises(NonFiniteLoss, match="in a new workdir"):
        run_tiny(tmp_path, changes)
    assert checkpoints(tmp_path) == [32]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_no_checkpoint_of_parameters_that_are_not_finite(tmp_path):
    """The loss of the first update is that before it, and does not tell."""
    often = {"run.checkpoint_every_epochs": 0.02, "run.updates_per_dispatch": 1}
    experiment = tiny_experiment({"log_every_epochs": 9.0} | often)
    plan: Any = experiment.plan
    recipe = dataclasses.replace(plan.recipe, curve=curves.constant(1e39))  # inf in float32
    experiment = dataclasses.replace(experiment, plan=dataclasses.replace(plan, recipe=recipe))
    message = "a parameter is not finite after update 1 .*there is no good row before"
    with pytest.raises(NonFiniteLoss, match=message):
        run_experiment(experiment, tmp_path)
    assert checkpoints(tmp_path) == []


MOVING = {
    "recipe.batch_size": 4,
    "ghost_batch_size": 4,
    "plan.max_batch_size": 16,
    "run.max_microbatch_size": 4,
}


def test_devices_too_many_for_a_segment_that_is_over(tmp_path):
    """A run moves to more devices at a growth, although its first batch does not fit them."""
    with pytest.raises(ValueError, match="batch size 4 cannot be laid out on 8 devices"):
        train_without_compiling(make_config(MOVING | {"run.num_devices": 8}), tmp_path)
    stopped = run_tiny(tmp_path, MOVING | {"run.stop_at_growth": True})
    assert stopped.outcome is Outcome.GROWTH
    moved = run_tiny(tmp_path, MOVING | {"run.num_devices": 8}, override_config=True)
    assert moved.outcome is Outcome.FINISHED
    assert moved.rows[-1]["batch_size"] == 16


def jpeg_digits(split: str, num_classes: int = 10) -> JpegDataset:
    """The digits as JPEGs of three channels."""
    arrays = load_images("digits", split).arrays
    colour = np.repeat(arrays["image"], 3, axis=-1)
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), 90, "RGB") for image in colour]
    pairs = zip(encoded, arrays["label"], strict=True)
    source = [{"image": jpeg, "label": int(label)} for jpeg, label in pairs]
    crop: Any = partial(jpeg.evaluation_crop, image_size=8)
    if split == "train":
        crop = partial(jpeg.training_crop, seed=0)
    return JpegDataset(source, crop, 8, num_classes)


def jpeg_experiment(changes: dict[str, Any], num_classes: int = 10) -> Any:
    experiment = tiny_experiment(changes)
    return dataclasses.replace(
        experiment,
        train_data=jpeg_digits("train", num_classes),
        test_data=jpeg_digits("test"),
        execution=dataclasses.replace(experiment.execution, input="workers"),
    )


@pytest.mark.slow
def test_devices_too_many_for_a_segment_of_jpegs_that_is_over(tmp_path):
    stopped = run_experiment(jpeg_experiment(MOVING | {"run.stop_at_growth": True}), tmp_path)
    assert stopped.outcome is Outcome.GROWTH
    experiment = jpeg_experiment(MOVING | {"run.num_devices": 8})
    moved = run_experiment(experiment, tmp_path, override_config=True)
    assert moved.outcome is Outcome.FINISHED
    assert moved.rows[-1]["batch_size"] == 16
    whole = run_experiment(jpeg_experiment(MOVING), tmp_path / "whole")
    assert_close(moved.rows, whole.rows, 1e-3)


def test_replaced_records_are_counted_in_the_summary(tmp_path):
    experiment = jpeg_experiment({})
    source = list(experiment.train_data.source)
    for wrong in Stream(1437, seed=0).indices([99, 100, 400]):
        source[wrong] = source[wrong] | {"image": b"not a JPEG"}
    data = dataclasses.replace(experiment.train_data, source=source, on_bad_record="replace")
    experiment = dataclasses.replace(experiment, train_data=data)
    for end in (128, 320):  # over all starts
        run_experiment(experiment, tmp_path, stop=lambda seen, end=end: seen >= end)
    run_experiment(experiment, tmp_path)
    assert read(tmp_path / "summary.json")["num_replaced_records"] == 3


def test_a_label_of_jpegs_that_is_not_a_class_stops_the_first_update(tmp_path):
    with pytest.raises(BadRecordError, match="label is [5-9], but model.num_classes is 5; set"):
        train(jpeg_experiment({}, num_classes=5), str(tmp_path))
    assert not read_rows(tmp_path)


def test_no_checkpoint_collects_the_metrics_that_tensorstore_never_frees(tmp_path, monkeypatch):
    collected = []
    name = "experimental_collect_matching_metrics"
    monkeypatch.setattr(tensorstore, name, lambda path: collected.append(path) or [])
    run_tiny(tmp_path)
    assert checkpoints(tmp_path) and not collected
    tensorstore.experimental_collect_matching_metrics("/")  # afterwards it is there again
    assert collected == ["/"]
