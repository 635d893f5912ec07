"""`train` from config to summary, on tiny runs."""

import json
import math
import pathlib
import signal
import time
from collections import Counter

import jax
import numpy as np
import pytest
import simplejpeg
from tiny import MemoryCheckpoints, make_config, read_rows, run_in_memory

from batchgrow import loop, open_data, parallel, steps
from batchgrow import train as train_module
from batchgrow.config import check, make_schedule
from batchgrow.data.feed import ResidentFeed
from batchgrow.data.sources import BadRecordError, Images, load_images
from batchgrow.loop import NonFiniteLoss, Outcome
from batchgrow.run.signals import Preemption
from batchgrow.programs import CPU_PASS
from batchgrow.run.folder import FolderError
from batchgrow.train import train

SCHEDULE = make_schedule(make_config())


def without_training(config, workdir, **options):
    """`train`, for input that must be refused before anything is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run_phases", None)
        return train(config, str(workdir), **options)


def test_rows_follow_the_plan(tmp_path):
    """Each row holds what the plan says of its last update; rows end where updates end."""
    trained = run_in_memory(tmp_path)
    assert trained.outcome is Outcome.FINISHED
    assert [row["examples_seen"] for row in trained.rows] == [160, 288, 352, 480, 608, 736]
    points = {p.examples_seen + p.batch_size: p for p in SCHEDULE.points()}
    for row in trained.rows:
        point = points[row["examples_seen"]]
        assert row["updates"] == point.updates + 1
        assert row["phase"] == point.phase
        assert row["global_batch_size"] == point.batch_size
        assert row["epoch"] == row["examples_seen"] / 1437
        for name in ("learning_rate", "momentum", "noise_scale"):
            assert row[name] == pytest.approx(getattr(point, name), rel=1e-12)
        recipe = SCHEDULE.recipe
        reference = recipe.learning_rate_at(min(row["examples_seen"], 718) - 1) / 0.1 * 1437 / 32
        assert row["noise_scale"] == pytest.approx(reference, rel=1e-6)
    assert trained.rows[-1]["updates"] == SCHEDULE.num_updates == 14
    assert [("test_loss" in row) for row in trained.rows] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]


def test_every_example_is_trained_on_once(tmp_path, monkeypatch):
    """The positions sent to the devices are the whole stream; the sums count each of them."""
    sent: list[np.ndarray] = []
    batch = ResidentFeed.batch

    def record(self, positions):
        sent.append(positions)
        return batch(self, positions)

    monkeypatch.setattr(ResidentFeed, "batch", record)
    never = {"log_every_epochs": 100.0, "evaluate_every_epochs": 100.0}
    one = {"run.updates_per_dispatch": 1}  # a dispatch with room for more repeats its last batch
    trained = run_in_memory(tmp_path, never | one | {"run.num_devices": 4})
    positions = np.concatenate([s.ravel() for s in sent])
    assert sorted(positions.tolist()) == list(range(736))
    assert [row["examples_seen"] for row in trained.rows] == [352, 736]  # the ends of the phases
    assert trained.states[352].sums["count"] == 0


@pytest.mark.parametrize(("input_ms", "update_ms", "waits"), [(40, 0, True), (10, 50, False)])
def test_rows_tell_the_share_of_time_that_devices_waited_for_input(
    input_ms, update_ms, waits, tmp_path, monkeypatch
):
    """Input made while the devices compute is waited for by nobody."""
    batch, step = ResidentFeed.batch, steps.train_step

    def slow_batch(self, positions):
        time.sleep(input_ms / 1e3)
        return batch(self, positions)

    def slow_step(*args, **options):
        state = step(*args, **options)
        jax.debug.callback(lambda _: time.sleep(update_ms / 1e3), state.sums["loss"])
        return state

    monkeypatch.setattr(ResidentFeed, "batch", slow_batch)
    monkeypatch.setattr(steps, "train_step", slow_step)
    never = {"log_every_epochs": 100.0, "evaluate_every_epochs": 100.0}
    run_in_memory(tmp_path, never | {"run.compile_ahead": False, "run.updates_per_dispatch": 1})
    first, _ = read_rows(tmp_path)  # a row for each phase; the first has 11 updates
    seconds = 352 / first["images_per_second"]
    least = 11 if waits else 1  # at first there is nothing to do meanwhile
    assert first["input_share"] * seconds >= least * input_ms / 1e3
    assert (first["input_share"] > 0.3) is waits


def test_evaluation_covers_every_test_example_once(tmp_path, monkeypatch):
    """360 examples in batches of 100 on 8 devices: 104 a batch, the last one padded."""
    totals = []
    evaluate = steps.eval_step

    def record(*args, **options):
        sums = evaluate(*args, **options)
        jax.debug.callback(lambda count: totals.append(float(count)), sums["count"])
        return sums

    monkeypatch.setattr(steps, "eval_step", record)
    seen: Counter[bytes] = Counter()
    shard = parallel.shard

    def count_images(tree, mesh):
        if "mask" in tree:
            assert tree["mask"].shape == (8, 13)
            seen.update(image.tobytes() for image in tree["image"][tree["mask"] == 1])
        return shard(tree, mesh)

    monkeypatch.setattr(parallel, "shard", count_images)
    run_in_memory(tmp_path, {"run.num_devices": 8, "evaluate_every_epochs": 1.0})
    jax.effects_barrier()
    assert sum(totals) == 8 * 360  # each device tells the total over all
    assert seen == Counter(image.tobytes() for image in load_images("digits", "test").image)


@pytest.mark.parametrize("updates_per_dispatch", [1, 4])
def test_the_step_is_traced_once_for_each_batch_size(updates_per_dispatch, tmp_path, monkeypatch):
    """Nothing that changes from update to update may be baked into the program."""
    traced: Counter[int] = Counter()
    step = steps.train_step

    def count(state, batch, *args, **options):
        traced[batch["index"].size] += 1
        return step(state, batch, *args, **options)

    monkeypatch.setattr(steps, "train_step", count)
    dispatch = {"run.updates_per_dispatch": updates_per_dispatch}
    warm_up = {"recipe.warmup_epochs": 0.1}  # the learning rate changes at each update
    run_in_memory(tmp_path, dispatch | warm_up)
    assert traced == {32: 1, 128: 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"run.updates_per_dispatch": 4},
        {"run.resident": False},
        {"run.compile_ahead": False, "run.eval_batch_size": 360},
    ],
    ids=["several updates per dispatch", "streamed", "not ahead"],
)
def test_how_it_runs_does_not_change_the_result(changes, tmp_path):
    common = {"data.augment": "crop_flip"}
    expected = run_in_memory(tmp_path / "plain", common)
    actual = run_in_memory(tmp_path / "other", common | changes)
    assert actual.states.keys() == expected.states.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (actual.states, actual.rows),
        (expected.states, expected.rows),
    )


def test_run_folder(tmp_path):
    """The files of a finished run of the small conv net, and that it has learned something."""
    config = make_config({"recipe.num_epochs": 1.5, "recipe.boundaries_epochs": (1.0,)})
    config.model = {"name": "conv_net", "channels": 4, "num_classes": 10, "dtype": "float32"}
    config.run.tensorboard = True
    assert train(config, str(tmp_path)) is Outcome.FINISHED
    schedule = make_schedule(config)
    assert read(tmp_path / "config.json") == json.loads(config.to_json())
    assert read(tmp_path / "plan.json") == schedule.to_dict(num_devices=1)

    summary, rows = read(tmp_path / "summary.json"), read_rows(tmp_path)
    assert summary["num_updates"] == schedule.num_updates == rows[-1]["updates"]
    assert summary["examples_seen"] == schedule.end_examples == rows[-1]["examples_seen"]
    assert summary["final"]["test_accuracy"] == rows[-1]["test_accuracy"] > 0.6
    assert summary["final"]["train_loss"] == rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert summary["best_test_accuracy"] == max(r.get("test_accuracy", 0) for r in rows)
    seconds = summary["seconds"]
    assert sum(seconds.values()) == pytest.approx(summary["wall_seconds"], abs=0.1)
    assert seconds.keys() == {"compile", "input", "eval", "checkpoint", "step"}
    assert [p["global_batch_size"] for p in summary["phases"]] == [32, 128]
    for phase in summary["phases"]:
        assert phase["lower_seconds"] > 0
        assert phase["num_microbatches"] == phase["global_batch_size"] // CPU_PASS
        assert phase.keys() >= {"compile_seconds", "waited_seconds", "cache_hit"}
    assert summary["devices"]["platform"] == "cpu" and summary["versions"]["jax"] == jax.__version__
    assert list((tmp_path / "tensorboard").iterdir())

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    assert without_training(config, tmp_path) is Outcome.FINISHED  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def test_divergence_names_the_updates_and_the_last_good_row(tmp_path):
    """A learning rate of 0 for the first update, then far too much; a row for every update."""
    exploding = {"recipe.learning_rate": 1e30, "recipe.warmup_epochs": 1e-6}
    with pytest.raises(NonFiniteLoss) as error:
        run_in_memory(tmp_path, exploding | {"log_every_epochs": 0.02})
    rows = read_rows(tmp_path)
    assert [row["updates"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in rows)
    assert "between updates 3 and 3 (epoch 0.07, batch 32" in str(error.value)
    last = f"the last good row, at update 2: train_loss {rows[-1]['train_loss']:.4g}"
    assert last in str(error.value)
    assert not (tmp_path / "summary.json").exists()


def test_divergence_in_the_first_row(tmp_path):
    with pytest.raises(NonFiniteLoss, match="between updates 1 and 5 .*no good row before"):
        run_in_memory(tmp_path, {"recipe.learning_rate": 1e30})


BAD_FIELDS = {
    "recipe.global_batch_size": (0, "batch_size"),
    "recipe.momentum": (1.0, "momentum"),
    "recipe.num_epochs": (0.0, "num_epochs"),
    "recipe.curve": ("linear", "recipe.curve 'linear' is none of constant, step"),
    "plan.name": ("shrink", "plan.name 'shrink' is none of decay, hybrid, grow"),
    "optimizer.name": ("adamw", "optimizer.name 'adamw' is none of sgd"),
    "optimizer.decay_on": ("biases", "optimizer.decay_on 'biases' is none of all, kernels"),
    "optimizer.weight_decay": (-1.0, "optimizer.weight_decay -1.0 must be 0 or more"),
    "model.name": ("vgg", "model.name 'vgg' is none of"),
    "model.dtype": ("float16", "model.dtype 'float16' is none of"),
    "model.num_classes": (1, "model.num_classes 1 must be 2 or more"),
    "data.augment": ("cutout", "data.augment 'cutout' is none of"),
    "data.num_train_examples": (1500, "data.num_train_examples is 1500, but digits has 1437"),
    "data.image_shape": ((28, 28, 1), r"data.image_shape is \(28, 28, 1\), but digits has"),
    "ghost_batch_size": (0, "ghost_batch_size 0 must be 1 or more"),
    "label_smoothing": (1.0, "label_smoothing 1.0 must be at least 0 and below 1"),
    "log_every_epochs": (0.0, "log_every_epochs 0.0 must be above 0 epochs"),
    "run.max_per_device_batch_size": ("all", "run.max_per_device_batch_size 'all' must be"),
    "run.num_devices": (9, "num_devices 9: 8 devices"),
    "run.eval_batch_size": (0, "run.eval_batch_size 0 must be 1 or more"),
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_wrong_field_is_named_before_anything_is_written(field, tmp_path):
    value, message = BAD_FIELDS[field]
    with pytest.raises(ValueError, match=message) as error:
        without_training(
            make_config({"model.name": "conv_net", "model.channels": 4, field: value}),
            tmp_path / "run",
        )
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize("value", [None, 0, "", (4,), math.inf])
def test_a_pass_size_that_is_no_number_is_refused(value):
    message = r"run.max_per_device_batch_size .* must be 'auto' or a number of examples, 1 or more"
    with pytest.raises(ValueError, match=message):
        check(make_config({"run.max_per_device_batch_size": value}))


@pytest.mark.parametrize("shape", [(4, 8, 1), (8, 4, 1)])
def test_images_too_small_to_be_padded_by_reflection(shape):
    changes = {"data.image_shape": shape, "data.augment": "crop_flip"}
    message = "'crop_flip' reflects 4 pixels at each edge, which takes 5 or more a side; set"
    with pytest.raises(ValueError, match=message):
        check(make_config(changes))
    check(make_config(changes | {"data.augment": "flip"}))
    check(make_config(changes | {"data.image_shape": (5, 5, 1)}))


def test_a_batch_that_does_not_divide_names_the_nearest(tmp_path):
    config = make_config({"plan.batch_multiple": 20, "recipe.global_batch_size": 20})
    with pytest.raises(ValueError, match="20 cannot be laid out on 1 devices .* 16 and 32"):
        without_training(config, tmp_path)


def test_devices_too_many_for_a_phase_that_is_over(tmp_path):
    """A run moves to more devices at a growth, whose number its first batch did not fit."""
    changes = {"recipe.global_batch_size": 4, "ghost_batch_size": 4, "plan.max_batch_size": 16}
    with pytest.raises(ValueError, match="global batch size 4 cannot be laid out on 8 devices"):
        train(make_config(changes | {"run.num_devices": 8}), str(tmp_path))
    config = make_config(changes)
    assert train(config, str(tmp_path), stop_at_phase_end=True) is Outcome.PHASE_END
    config = make_config(changes | {"run.num_devices": 8})
    assert train(config, str(tmp_path), override_config=True) is Outcome.FINISHED
    assert read_rows(tmp_path)[-1]["global_batch_size"] == 16


def jpeg_digits(_, split, data_dir="", *, decode):
    """In place of `open_source`: the digits as JPEGs of three channels."""
    images = load_images("digits", split)
    colour = np.repeat(images.image, 3, axis=-1)
    jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), 90, "RGB") for image in colour]
    pairs = zip(jpegs, images.label, strict=True)
    return [{"image": jpeg, "label": int(label)} for jpeg, label in pairs]


JPEGS = {
    "data.augment": "random_resized_crop",
    "data.image_shape": (8, 8, 3),
    "data.mean": (73.0,) * 3,
    "data.std": (90.0,) * 3,
    "run.resident": False,
}


def test_devices_too_many_for_a_phase_of_jpegs_that_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(open_data, "open_source", jpeg_digits)
    changes = JPEGS | {
        "recipe.global_batch_size": 4,
        "ghost_batch_size": 4,
        "plan.max_batch_size": 16,
        "run.max_per_device_batch_size": 4,
    }
    assert train(make_config(changes), str(tmp_path), stop_at_phase_end=True) is Outcome.PHASE_END
    config = make_config(changes | {"run.num_devices": 8})
    assert train(config, str(tmp_path), override_config=True) is Outcome.FINISHED
    assert read_rows(tmp_path)[-1]["global_batch_size"] == 16


def test_a_label_of_jpegs_that_is_no_class_stops_the_first_update(tmp_path, monkeypatch):
    monkeypatch.setattr(open_data, "open_source", jpeg_digits)
    config = make_config(JPEGS | {"model.num_classes": 5})
    with pytest.raises(BadRecordError, match="num_classes is 5, but its label is [5-9]; set"):
        train(config, str(tmp_path))
    assert not read_rows(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("label", "message"),
    [(-1, "a label -1; take a split .* labelled"), (10, "a label 10; set the field to 11 or more")],
)
def test_a_label_that_is_no_class_is_refused(split, label, message, tmp_path, monkeypatch):
    def spoilt(name, other, data_dir=""):
        images = load_images(name, other, data_dir)
        labels = images.label.copy()
        if other == split:
            labels[7] = label
        return Images(images.image, labels)

    monkeypatch.setattr(open_data, "load_images", spoilt)
    with pytest.raises(ValueError, match=f"model.num_classes is 10, but .* has {message}"):
        without_training(make_config(), tmp_path)


def test_memory_too_small_for_one_ghost(tmp_path):
    config = make_config({"run.max_per_device_batch_size": 8})
    with pytest.raises(ValueError, match="max_per_device_batch_size 8 .* ghost batches, 16"):
        without_training(config, tmp_path)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FolderError, match="workdir is empty"):
        without_training(make_config(), "")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="cannot be written"):
        without_training(make_config(), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_another_config_is_left_alone(tmp_path):
    """Fields under `run` may change if asked for; fields of the trajectory never."""
    run_in_memory(tmp_path)
    (tmp_path / "summary.json").unlink()
    files = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    for override in (False, True):
        with pytest.raises(FolderError, match=r"another config \(seed: 0 -> 1\).*--workdir"):
            without_training(make_config({"seed": 1}), tmp_path, override_config=override)
    other = make_config({"run.num_devices": 2})
    with pytest.raises(FolderError, match="run.num_devices: 1 -> 2.*--override_config"):
        without_training(other, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == files
    run_in_memory(tmp_path, {"run.num_devices": 2}, override_config=True)
    assert read(tmp_path / "config.json")["run"]["num_devices"] == 2


def test_a_folder_in_use_is_refused(tmp_path):
    import fcntl

    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FolderError, match="another run is using it"):
            without_training(make_config(), tmp_path)


def test_a_value_error_while_training_is_no_bad_input(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(RuntimeError, match="a fault of the program.*shapes do not match"):
        run_in_memory(tmp_path)


def test_a_command_of_several_runs_hears_what_came_too_late_for_one():
    with Preemption() as outer:
        with Preemption():
            signal.raise_signal(signal.SIGTERM)
        assert outer.requested()
        with Preemption() as following:
            assert not following.requested()


def test_steps_past_the_end_are_told(caplog):
    make_schedule(make_config())
    assert caplog.text == ""
    make_schedule(make_config({"recipe.num_epochs": 1.0, "recipe.boundaries_epochs": (0.5, 1.0)}))
    assert "the steps at 1 lie beyond recipe.num_epochs 1;" in caplog.text


def test_a_last_update_that_diverges_is_told(tmp_path, monkeypatch):
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *a: evaluate(*a) | {"test_loss": float("nan")})
    with pytest.raises(NonFiniteLoss, match="the loss is nan between updates"):
        run_in_memory(tmp_path)


def test_no_checkpoint_of_a_lost_run(tmp_path, monkeypatch):
    """Where rows are rarer than checkpoints: the one after the first update stays the last."""
    checkpoints = MemoryCheckpoints()
    monkeypatch.setattr(train_module, "Checkpoints", lambda *_, **__: checkpoints)
    changes = {
        "recipe.learning_rate": 1e30,
        "log_every_epochs": 9.0,
        "evaluate_every_epochs": 9.0,
        "run.checkpoint_every_epochs": 0.02,
        "run.updates_per_dispatch": 1,
    }
    with pytest.raises(NonFiniteLoss, match="in a new workdir"):
        train(make_config(changes), str(tmp_path / "run"))
    assert list(checkpoints.states) == [32]
