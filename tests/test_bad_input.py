"""Wrong fields, data and folders are refused before anything is compiled or written."""

import fcntl
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import make_config, run_tiny, train_without_compiling

from batchgrow.config import check_layouts, make_experiment, make_plan
from batchgrow.config.data import model_facts
from batchgrow.data.catalog import load_images
from batchgrow.data.datasets import ArrayDataset
from batchgrow.run.folder import FolderError

BAD_FIELDS = {
    "recipe.batch_size": (0, "batch_size"),
    "recipe.momentum": (1.0, "momentum"),
    "recipe.num_epochs": (0.0, "num_epochs"),
    "recipe.boundaries_epochs": ((0.3, 0.1), "^recipe.boundaries_epochs=.* in rising order"),
    "plan.max_batch_size": (8, "^plan.max_batch_size=8.0 is less than batch_multiple=16"),
    "data.train_split": ("half", "digits has no split 'half': set data.train_split and"),
    "recipe.curve": ("linear", "unknown recipe.curve 'linear'; choose constant, step"),
    "recipe.momentum_curve": ("math:sqrt", "recipe.momentum_curve .* takes x by position"),
    "plan.name": ("shrink", "unknown plan.name 'shrink'; choose decay, hybrid, grow"),
    "optimizer.name": ("adamax", "unknown optimizer.name 'adamax'; choose sgd"),
    "optimizer.decay_on": ("biases", "unknown optimizer.decay_on 'biases'; choose all, kernels"),
    "optimizer.weight_decay": (
        -1.0,
        "optimizer.weight_decay .* must be a finite number, 0 or more",
    ),
    "optimizer.clip_norm": (0.0, "optimizer.clip_norm .* must be a finite number,"),
    "optimizer.average_epochs": (0.0, "optimizer.average_epochs .* must be a finite number,"),
    "model.name": ("vgg", "unknown model.name 'vgg'; choose conv_net"),
    "model.dtype": ("float16", "unknown model.dtype 'float16'; choose"),
    "model.num_classes": (
        9,
        "model.num_classes is 9, but digits has 10; set the field to 10 or more",
    ),
    "task.name": ("ranking", "unknown task.name 'ranking'; choose classification, language"),
    "task.augment": ("cutout", "unknown task.augment 'cutout'; choose none"),
    "task.label_smoothing": (
        1.0,
        "task.label_smoothing .* must be a finite number, 0 or more, below 1",
    ),
    "task.mean": ((1.0, 2.0), "task.mean has 2 values and the images have 1 channels"),
    "task.std": ((0.0,), "task.std .* must be a tuple, each entry a finite"),
    "data.name": ("nowhere:at_all", "data.name 'nowhere:at_all' cannot be imported"),
    "data.num_train_examples": (1500, "data.num_train_examples is 1500, but digits has 1437"),
    "seed": (-1, "seed -1 must be a whole number, 0 or more"),
    "ghost_batch_size": (0, "ghost_batch_size 0 must be a whole number, 1 or more"),
    "log_every_epochs": (0.0, "log_every_epochs 0.0 must be a finite number, .*above 0"),
    "evaluate_every_epochs": (np.inf, "evaluate_every_epochs inf must be a finite number"),
    "run.checkpoint_every_epochs": (-1.0, "run.checkpoint_every_epochs -1.0 must be"),
    "run.max_microbatch_size": (0, "run.max_microbatch_size 0 must be a whole number, 1 or more"),
    "run.updates_per_dispatch": (0, "run.updates_per_dispatch 0 must be a whole number, 1 or more"),
    "run.num_devices": (9, "run.num_devices 9: there are only 8 devices"),
    "run.eval_batch_size": (0, "run.eval_batch_size 0 must be a whole number, 1 or more"),
    "run.input": ("mail", "unknown run.input 'mail'; choose resident, streamed, workers"),
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_wrong_field_is_named_before_anything_is_written(field, tmp_path):
    value, message = BAD_FIELDS[field]
    config = make_config({"model.name": "conv_net", "model.channels": 4, field: value})
    with pytest.raises(ValueError, match=message) as error:
        train_without_compiling(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("recipe.lerning_rate", "; the nearest is 'recipe.learning_rate'"),
        ("evalute_every_epochs", "; the nearest is 'evaluate_every_epochs'"),
        ("recipe.learning_rates.adamm", "; the nearest is 'recipe.learning_rates.adam'"),
        ("data.seed", "; the nearest is 'seed'"),
        ("optimiser", "; the nearest is 'optimizer.weight_decay'"),
    ],
)
def test_a_misspelt_field_of_a_config_file_is_refused(name, nearest):
    """A config file may add fields; so it does by a slip."""
    value: Any = ConfigDict({"weight_decay": 0.1}) if name == "optimiser" else 0.1
    config = make_config({name: value})
    for make in (make_experiment, lambda config: make_plan(config, 1437)):
        with pytest.raises(ValueError, match=f"{name}.*: no such config field{nearest}"):
            make(config)


def own_curve(learning_rate: float, dip: float):
    return lambda epoch: learning_rate * (dip if epoch > 0.1 else 1.0)


def own_momentum(momentum: float, rise: float):
    return lambda epoch: momentum + rise * epoch


def test_parts_of_ones_own_have_fields_of_their_own():
    """A curve, a momentum, a rate of one's own optimizer."""
    changes = {"recipe.curve": "test_bad_input:own_curve", "recipe.dip": 0.5}
    changes |= {"recipe.momentum_curve": "test_bad_input:own_momentum", "recipe.rise": 0.01}
    config = make_config(changes | {"recipe.learning_rates": ConfigDict({"mine:lion": 0.1})})
    make_plan(config, 1437)
    with pytest.raises(ValueError, match="recipe.dipp: .*; the nearest is 'recipe.dip'"):
        make_plan(make_config(changes | {"recipe.dipp": 1.0}), 1437)


def negative_label(split: str) -> ArrayDataset:
    return relabelled(split, "train", -1)


def label_beyond_the_classes(split: str) -> ArrayDataset:
    return relabelled(split, "test", 10)


def relabelled(split: str, wrong: str, label: int) -> ArrayDataset:
    """The digits of a split, with one other label in the split `wrong`."""
    arrays = load_images("digits", split).arrays
    labels = arrays["label"].copy()
    labels[7] = label if split == wrong else labels[7]
    return ArrayDataset({"image": arrays["image"], "label": labels})


class Unlabelled:
    """A source of one's own, with a wrong label at its end."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.zeros((8, 8, 1), np.uint8), "label": np.int32(-1 if index > 190 else 3)}


def unlabelled(split: str) -> Unlabelled:
    return Unlabelled()


def test_classes_that_only_the_test_data_have_are_warned_of(caplog):
    train, test = (SimpleNamespace(facts={"num_classes": number}) for number in (5, 8))
    assert model_facts(train, test) == {"num_classes": 8}
    (line,) = caplog.messages
    assert line.startswith(
        "the test data have a label 7, and the training data only labels up to 4"
    )


@pytest.mark.parametrize("input", ["resident", "streamed"])
def test_labels_of_a_source_are_looked_at(input, tmp_path):
    config = make_config({"data.name": "test_bad_input:unlabelled", "run.input": input})
    config.data.num_train_examples = config.data.num_test_examples = None
    config.model.num_classes = 10
    with pytest.raises(ValueError, match="the train split has a label -1; .* choose a split"):
        train_without_compiling(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("negative_label", "the train split has a label -1; .* choose a split"),
        ("label_beyond_the_classes", "num_classes is 10, but the test split has a label 10; set"),
    ],
)
def test_a_label_that_is_not_a_class_is_refused(name, message, tmp_path):
    config = make_config({"data.name": f"test_bad_input:{name}"})
    with pytest.raises(ValueError, match=message):
        train_without_compiling(config, tmp_path)


def test_a_batch_of_more_examples_than_all_epochs_have():
    config = make_config({"recipe.batch_size": 10_000_000})
    with pytest.raises(ValueError, match="recipe.batch_size 10,000,000 is more than the .* of all"):
        make_plan(config, 1437)


def test_a_batch_that_does_not_divide_names_the_nearest(tmp_path):
    config = make_config({"plan.batch_multiple": 20, "recipe.batch_size": 20})
    with pytest.raises(ValueError, match="20 cannot be laid out on 1 devices .* 16 and 32"):
        train_without_compiling(config, tmp_path)
    with pytest.raises(ValueError, match="20 cannot be laid out on 1 devices .* 16 and 32"):
        check_layouts(make_plan(config, 1437), 1, config)


def test_memory_too_small_for_one_ghost(tmp_path):
    config = make_config({"run.max_microbatch_size": 8})
    with pytest.raises(ValueError, match="max_microbatch_size 8 is less than .* ghost batches, 16"):
        train_without_compiling(config, tmp_path)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FolderError, match="workdir is empty"):
        train_without_compiling(make_config(), "")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="file is a file, not a folder"):
        train_without_compiling(make_config(), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_another_config_is_left_alone(tmp_path):
    """Fields under `run` may change if asked for; fields of the trajectory never."""
    run_tiny(tmp_path)
    (tmp_path / "summary.json").unlink()
    files = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    for override in (False, True):
        with pytest.raises(FolderError, match=r"another config \(seed: 0 -> 1\).*--workdir"):
            train_without_compiling(make_config({"seed": 1}), tmp_path, override_config=override)
    other = make_config({"run.num_devices": 2})
    with pytest.raises(FolderError, match="run.num_devices: 1 -> 2.*--override_config"):
        train_without_compiling(other, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == files
    run_tiny(tmp_path, {"run.num_devices": 2}, override_config=True)
    assert json.loads((tmp_path / "config.json").read_text())["run"]["num_devices"] == 2


def test_a_folder_in_use_is_refused(tmp_path):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FolderError, match="another run is using it"):
            train_without_compiling(make_config(), tmp_path)


def test_steps_after_the_end_are_reported(caplog):
    make_plan(make_config(), 1437)
    assert "are after recipe.num_epochs" not in caplog.text
    make_plan(make_config({"recipe.num_epochs": 1.0, "recipe.boundaries_epochs": (0.5, 1.0)}), 1437)
    assert "the steps at 1 are after recipe.num_epochs 1;" in caplog.text
