"""One's own data, model, optimizer, curve, task and config, without a change of the library."""

import csv
import json
import os
import pathlib
import subprocess
import sys
import types
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx as flax_nnx
from ml_collections import ConfigDict

from batchgrow import Recipe, curves, decay, grow
from batchgrow.config import make_experiment, make_plan
from batchgrow.config.fields import FIELDS
from batchgrow.data.datasets import SourceDataset
from batchgrow.experiment import Experiment, Outcome
from batchgrow.models import GhostBatchNorm, make_model, nnx
from batchgrow.models.dropout import apply
from batchgrow.tasks import Metric, Outputs
from batchgrow.train import train
from configs import base

ROOT = pathlib.Path(__file__).parents[1]
HERE = "test_doors"


def make_config(name: str, changes: dict[str, Any] | None = None, task: str = "") -> ConfigDict:
    """Two epochs of a small perceptron: batches of 4, then of 8."""
    config = base.get_config()
    config.name = "own"
    config.data.name = name
    config.model = ConfigDict({"name": "mlp", "features": (8,)})
    config.recipe.num_epochs = 2.0
    config.recipe.batch_size = 4
    config.recipe.learning_rate = 0.02
    config.recipe.boundaries_epochs = (1.0,)
    config.recipe.factor = 0.5
    config.plan.name = "grow"
    config.plan.exponent = 1.0
    config.plan.max_batch_size = 8
    config.run.num_devices = 1
    config.run.tensorboard = config.run.progress = False
    if task:
        config.task = ConfigDict({"name": task})
    for field, value in (changes or {}).items():
        section, _, name = field.rpartition(".")
        target = config[section] if section else config
        with target.unlocked(), target.ignore_type():
            target[name] = value
    return config


def train_twice(config: ConfigDict, folder: pathlib.Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and the last row after its training; a second start finds it finished."""
    experiment = make_experiment(config)
    assert train(experiment, str(folder)) is Outcome.FINISHED
    assert train(make_experiment(config), str(folder)) is Outcome.FINISHED
    return experiment, json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def write_images(root: pathlib.Path, side: int = 6, each: int = 10) -> pathlib.Path:
    """Two classes: bright cats and dark dogs."""
    for name, level in (("cat", 200), ("dog", 50)):
        (root / name).mkdir(parents=True)
        for index in range(each):
            image = np.full((side, side + 2, 3), level + index, np.uint8)
            cv2.imwrite(str(root / name / f"{index}.png"), image)
    return root


def write_csv(path: pathlib.Path, rows: int = 30, **cells: str) -> pathlib.Path:
    """y is 3 a - b; `cells` replace those of the fourth line."""
    a, b = np.random.default_rng(0).normal(size=(2, rows)) * 10 + 5
    table = [dict(a=str(x), b=str(z), y=str(3 * x - z)) for x, z in zip(a, b, strict=True)]
    table[2] |= cells
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["a", "b", "y"])
        writer.writeheader()
        writer.writerows(table)
    return path


ARRAYS = {
    "image": np.random.default_rng(0).integers(0, 255, (24, 5, 5, 1), dtype=np.uint8),
    "label": np.arange(24) % 3,
}


# ---- data


def test_npz_of_images_gives_the_sizes(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    config = make_config(f"{tmp_path}/a.npz", {"data.test_share": 0.25})
    experiment, row = train_twice(config, tmp_path / "run")
    assert (experiment.train_data.num_examples, experiment.test_data.num_examples) == (18, 6)
    assert experiment.task.num_classes == experiment.task.model.outputs == 3
    assert experiment.settings["model"]["outputs"] == 3
    assert row["test_accuracy"] >= 0 and row["batch_size"] == 8
    # Every example is in one of the two, and a second start draws the same.
    both = (experiment.train_data.arrays, experiment.test_data.arrays)
    images = np.concatenate([arrays["image"] for arrays in both])
    assert sorted(map(bytes, images)) == sorted(map(bytes, ARRAYS["image"]))


def test_npz_with_two_splits_and_other_names(tmp_path):
    grey = ARRAYS["image"][..., 0]  # As in Keras: no axis of channels.
    np.savez(
        tmp_path / "a.npz", x_train=grey, y_train=ARRAYS["label"], x_test=grey[:6], y_test=[0] * 6
    )
    experiment = make_experiment(make_config(f"npz:{tmp_path}/a.npz"))
    assert experiment.train_data.example["image"].shape == (5, 5, 1)
    assert experiment.test_data.num_examples == 6
    np.savez(tmp_path / "b.npz", picture=ARRAYS["image"], kind=ARRAYS["label"])
    changes = {"data.test_share": 0.25, "data.columns": "picture,kind"}
    make_experiment(make_config(f"npz:{tmp_path}/b.npz", changes))


def test_npz_of_numbers_and_of_tokens(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.savez(tmp_path / "a.npz", x=x, y=100 + 10 * x[:, 0])
    config = make_config(f"{tmp_path}/a.npz", {"data.test_share": 0.25}, "regression")
    experiment, row = train_twice(config, tmp_path / "run")
    assert experiment.task.model.outputs == 1
    assert experiment.task.mean == pytest.approx(100, abs=5)
    assert row["test_r2"] > 0.3
    np.savez(tmp_path / "t.npz", tokens=np.arange(400) % 11)
    changes = {"data.test_share": 0.25, "data.context": 8, "model": transformer()}
    experiment = make_experiment(make_config(f"{tmp_path}/t.npz", changes, "language"))
    assert (experiment.task.model.vocab_size, experiment.task.model.context) == (11, 8)


def transformer() -> ConfigDict:
    return ConfigDict({"name": "transformer", "layers": 1, "heads": 1, "channels": 8})


def test_folder_of_images(tmp_path):
    write_images(tmp_path / "all")
    changes = {"data.test_share": 0.2, "data.image_size": 4}
    config = make_config(f"images:{tmp_path}/all", changes)
    experiment, row = train_twice(config, tmp_path / "run")
    assert experiment.task.num_classes == 2
    assert experiment.train_data.arrays["image"].shape == (16, 4, 4, 3)
    cat = experiment.train_data.arrays["image"][experiment.train_data.arrays["label"] == 0]
    assert cat.min() >= 200
    assert np.isfinite(row["test_loss"])
    # Decoded when they are needed, they are the same.
    config.run.input = "streamed"
    streamed, _ = train_twice(config, tmp_path / "streamed")
    assert isinstance(streamed.train_data, SourceDataset)
    rows = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("run", "streamed")]
    losses = [[json.loads(line)["train_loss"] for line in text.splitlines()] for text in rows]
    assert losses[0] == losses[1]


def test_folder_with_splits_keeps_shapes_that_are_equal(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, each=4)
    config = make_config(f"images:{tmp_path}/{{split}}", {"data.test_split": "val"})
    data = make_experiment(config).test_data
    assert data.arrays["image"].shape == (8, 6, 8, 3)


@pytest.mark.parametrize(("tokens", "size"), [("characters", 5), ("bytes", 256)])
def test_text(tokens, size, tmp_path):
    (tmp_path / "a.txt").write_text("abcé " * 60, encoding="utf-8")
    changes = {
        "data.test_share": 0.25,
        "data.tokens": tokens,
        "data.context": 8,
        "model": transformer(),
    }
    config = make_config(f"text:{tmp_path}/a.txt", changes, "language")
    experiment, row = train_twice(config, tmp_path / "run")
    assert experiment.task.model.vocab_size == size
    assert row["test_perplexity"] < size
    text = np.concatenate(
        [d.arrays["tokens"] for d in (experiment.train_data, experiment.test_data)]
    )
    assert len(text) == (300 if tokens == "characters" else 360)


def test_csv_is_standardised_by_the_training_rows(tmp_path):
    write_csv(tmp_path / "a.csv")
    changes = {"data.test_share": 0.2, "data.target": "y"}
    config = make_config(f"csv:{tmp_path}/a.csv", changes, "regression")
    experiment, row = train_twice(config, tmp_path / "run")
    x = experiment.train_data.arrays["x"]
    assert x.shape == (24, 2)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-6)
    assert abs(experiment.test_data.arrays["x"].mean()) > 1e-3
    assert experiment.task.std > 10  # y keeps its unit
    assert row["test_r2"] > 0.3


def test_csv_with_classes_and_several_targets(tmp_path):
    (tmp_path / "c.csv").write_text("a,kind\n" + "1,cat\n2,dog\n3,eel\n" * 8)
    changes = {"data.test_share": 0.25, "data.target": "kind"}
    experiment = make_experiment(make_config(f"csv:{tmp_path}/c.csv", changes))
    assert experiment.task.num_classes == 3
    write_csv(tmp_path / "train.csv"), write_csv(tmp_path / "test.csv", rows=10)
    changes = {"data.target": "b, y"}
    config = make_config(f"csv:{tmp_path}/{{split}}.csv", changes, "regression")
    experiment = make_experiment(config)
    assert experiment.task.model.outputs == 2
    assert experiment.test_data.num_examples == 10
    np.testing.assert_allclose(experiment.train_data.arrays["y"].std(0), 1, atol=1e-6)


def test_another_task_needs_no_new_section(tmp_path):
    write_csv(tmp_path / "a.csv")
    changes = {"data.test_share": 0.2, "data.target": "y", "task.name": "regression"}
    experiment = make_experiment(make_config(f"csv:{tmp_path}/a.csv", changes))
    assert type(experiment.task).__name__ == "Regression"
    changes["task.augment"] = "flip"
    with pytest.raises(
        ValueError, match="'regression' has no field task.augment; it has mean, std"
    ):
        make_experiment(make_config(f"csv:{tmp_path}/a.csv", changes))


def test_columns_of_a_csv_are_chosen_and_the_last_is_the_target(tmp_path):
    write_csv(tmp_path / "a.csv")
    name = f"csv:{tmp_path}/a.csv"
    both = []
    for columns, target in (("b, y", None), ("b", "y")):
        changes = {"data.test_share": 0.2, "data.columns": columns, "data.target": target}
        both.append(make_experiment(make_config(name, changes, "regression")).train_data.arrays)
    everything = {"data.test_share": 0.2, "data.target": "y"}
    whole = make_experiment(make_config(name, everything, "regression")).train_data.arrays
    for arrays in both:
        np.testing.assert_array_equal(arrays["x"], whole["x"][:, 1:])
        np.testing.assert_array_equal(arrays["y"], whole["y"])


def as_arrays(split: str) -> dict[str, np.ndarray]:
    return {name: array[: 18 if split == "train" else 6] for name, array in ARRAYS.items()}


def as_examples(split: str) -> list[dict[str, Any]]:
    return [{name: array[i] for name, array in ARRAYS.items()} for i in range(24)]


class FakeTable:
    """What this project uses of a `datasets.Dataset`: images in one column, classes in another."""

    column_names = ("img", "kind")
    features = {"img": type("Image", (), {})(), "kind": types.SimpleNamespace(num_classes=4)}

    def __init__(self, rows: Any = range(24)):
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        if key == "kind":
            return ARRAYS["label"][self.rows]
        row = self.rows[key]
        return {"img": ARRAYS["image"][row][..., 0], "kind": int(ARRAYS["label"][row])}

    def with_format(self, _: str) -> "FakeTable":
        return self

    def select(self, rows: Any) -> "FakeTable":
        return FakeTable([self.rows[row] for row in rows])


def as_table(split: str) -> FakeTable:
    return FakeTable()


@pytest.mark.parametrize("name", ["as_arrays", "as_examples", "as_table"])
def test_a_function_of_ones_own(name, tmp_path):
    changes: dict[str, Any] = {"data.test_share": None if name == "as_arrays" else 0.25}
    if name == "as_examples":
        changes |= {"run.input": "streamed", "model.outputs": 3, "task.num_classes": 3}
    if name == "as_table":
        changes["data.columns"] = "img,kind"
    config = make_config(f"{HERE}:{name}", changes)
    experiment, _ = train_twice(config, tmp_path)
    assert experiment.train_data.num_examples == 18
    assert experiment.test_data.num_examples == 6
    assert experiment.task.num_classes == (4 if name == "as_table" else 3)


@pytest.mark.skipif("datasets" in sys.modules, reason="it is about a missing package")
def test_hugging_face_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="'hf:cifar10' needs .* pip install datasets"):
        make_experiment(make_config("hf:cifar10"))


def test_hugging_face_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"img": list(ARRAYS["image"][..., 0]), "kind": ARRAYS["label"].tolist()}
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c", "d"])}
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(str(tmp_path / "table"))
    changes = {"data.test_share": 0.25, "data.columns": "img,kind"}
    experiment = make_experiment(make_config(f"hf:{tmp_path}/table", changes))
    assert experiment.task.num_classes == 4
    np.testing.assert_array_equal(
        experiment.train_data.arrays["image"],
        make_experiment(make_config(f"{HERE}:as_table", changes)).train_data.arrays["image"],
    )
    texts = datasets.Dataset.from_dict({"text": ["abc", "cab"] * 40})
    both = datasets.DatasetDict(train=texts, test=texts)
    both.save_to_disk(str(tmp_path / "texts"))
    changes = {"data.context": 8, "model": transformer()}
    experiment = make_experiment(make_config(f"hf:{tmp_path}/texts", changes, "language"))
    assert experiment.task.model.vocab_size == 4


def test_tfds_is_a_name_with_or_without_its_prefix(tmp_path):
    for name in ("no_such_data", "tfds:no_such_data"):
        changes = {"run.data_dir": str(tmp_path)}
        with pytest.raises(ValueError, match="'no_such_data'"):
            make_experiment(make_config(name, changes))


def broken_sources(folder: pathlib.Path) -> dict[str, tuple[str, dict[str, Any], str]]:
    """By what is wrong: data.name, changes of the config, and the message."""
    share = {"data.test_share": 0.25}
    y = {**share, "data.target": "y"}
    image, label = ARRAYS["image"], ARRAYS["label"]
    np.savez(folder / "lengths.npz", picture=image, kind=label[:5])
    np.savez(folder / "parts.npz", x_train=image, y_train=label[:5], x_test=image, y_test=label)
    bad = np.zeros((24, 2))
    bad[7, 1], bad[9, 0] = np.nan, 1.0
    np.savez(folder / "nan.npz", measured=bad, kind=label)
    np.savez(
        folder / "huge.npz",
        x_train=np.zeros((24, 2)),
        y_train=np.arange(24) * 1e38,
        x_test=bad,
        y_test=bad,
    )
    np.savez(folder / "object.npz", image=image, label=np.array([None] * 24))
    np.savez(folder / "text.npz", image=image, label=np.array(["cat"] * 24))
    np.savez(folder / "float.npz", image=image, label=label + 0.5)
    np.savez(folder / "keys.npz", picture=image, label=label)
    np.savez(folder / "good.npz", image=image, label=label)
    (folder / "no.npz").write_text("no")
    write_images(folder / "empty")
    (folder / "empty/bird").mkdir()
    write_images(folder / "splits/train")
    write_images(folder / "sizes")
    cv2.imwrite(str(folder / "sizes/cat/5.png"), np.zeros((9, 9, 3), np.uint8))
    (folder / "flat").mkdir()
    write_csv(folder / "cell.csv", a="n/a")
    write_csv(folder / "nan.csv", a="nan")
    (folder / "ragged.csv").write_text("a,y\n1,2\n3\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9" * 99)
    text = {**share, "data.context": 8}
    return {
        "path": (f"{folder}/none.npz", share, "/none.npz does not exist"),
        "no name": ("", {}, "data.name is not set"),
        "no npz": (f"{folder}/no.npz", share, "no.npz is not an .npz file"),
        "lengths": (
            f"{folder}/lengths.npz",
            {**share, "data.columns": "picture,kind"},
            r"unequal length \(picture 24, kind 5\)",
        ),
        "parts": (f"{folder}/parts.npz", {}, r"unequal length \(x_train 24, y_train 5\)"),
        "nan in npz": (
            f"{folder}/nan.npz",
            {**share, "data.columns": "measured,kind"},
            r"the array 'measured' has nan at index \[7, 1\], which is not a finite float32",
        ),
        "too large": (
            f"{folder}/huge.npz",
            {"task": ConfigDict({"name": "regression"})},
            r"the array 'y_train' has 4e\+38 at index \[4\], which is not a finite float32",
        ),
        "object": (f"{folder}/object.npz", share, "'label' has dtype object; it must hold numb"),
        "strings": (f"{folder}/text.npz", share, "'label' has dtype <U3; it must hold numbers"),
        "float": (f"{folder}/float.npz", share, "'label' has dtype float64; it must hold whole"),
        "keys": (
            f"{folder}/keys.npz",
            share,
            "has 'picture', 'label', but the task needs 'image' or 'x' and 'label' or 'y'; set da",
        ),
        "columns": (f"{folder}/good.npz", {**share, "data.columns": "a"}, "has 1 names; the task"),
        "no share": (f"{folder}/good.npz", {}, "has one split; set data.test_share"),
        "share": (f"{folder}/good.npz", {"data.test_share": 0.01}, "leaves 0 to test and 24 to"),
        "class folder": (f"images:{folder}/empty", share, "folder .*/bird has no images"),
        "split": (f"images:{folder}/splits", share, "if 'train' is a split, write images:FOLDER/{"),
        "no folders": (f"images:{folder}/flat", share, "/flat has no folders; put the images"),
        "sizes": (
            f"images:{folder}/sizes",
            share,
            "images of different sizes .*; set data",
        ),
        "no target": (f"csv:{folder}/cell.csv", share, "data.target None must name .*: a, b, y"),
        "cell": (f"csv:{folder}/cell.csv", y, "'n/a' in column 'a', line 4, is not a number"),
        "nan": (f"csv:{folder}/nan.csv", y, "nan in column 'a', line 4, is not a finite"),
        "unknown column": (
            f"csv:{folder}/nan.csv",
            {**y, "data.columns": "b,c"},
            "data.columns 'b,c' must name columns of .*, each once, .*: a, b, y",
        ),
        "only a target": (
            f"csv:{folder}/nan.csv",
            {**share, "data.columns": "y"},
            "data.columns 'y' and data.target None leave no column of .*: a, b, y",
        ),
        "two classes": (
            f"csv:{folder}/nan.csv",
            {**share, "data.columns": "b", "data.target": "a,y"},
            "data.target 'a,y' names 2 columns; the task reads one",
        ),
        "ragged": (f"csv:{folder}/ragged.csv", y, "line 3 of .* has 1 cells and the header has 2"),
        "latin": (
            f"text:{folder}/latin.txt",
            text,
            "not a text in UTF-8 .byte 3.; set data",
        ),
        "tokens": (
            f"text:{folder}/latin.txt",
            {**text, "data.tokens": "words"},
            "unknown data.tokens 'words'; choose characters, bytes",
        ),
        "context": (
            f"text:{folder}/latin.txt",
            {**share, "data.tokens": "bytes"},
            "data.context is not set",
        ),
        "function": (
            f"{HERE}:make_plan",
            {},
            "data.name 'test_doors:make_plan'|missing 1 required",
        ),
    }


BROKEN = [
    *("path", "no name", "no npz", "lengths", "object", "strings", "float", "keys", "columns"),
    *("no share", "share", "class folder", "split", "no folders", "sizes", "no target", "cell"),
    *("nan", "ragged", "latin", "tokens", "context", "parts", "nan in npz", "too large"),
    *("unknown column", "only a target", "two classes"),
]


@pytest.mark.parametrize("what", BROKEN)
def test_one_line_says_what_is_wrong_with_the_data(what, tmp_path):
    name, changes, message = broken_sources(tmp_path)[what]
    with pytest.raises(ValueError, match=message) as error:
        make_experiment(make_config(name, changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.outputs", 2, "model.outputs is 2, but .* has 3; set the field to 3 or more"),
        ("model.num_classes", 3, "mlp has no field model.num_classes; it has features, outputs"),
        ("model.features", None, "model.features is not set"),
        (
            "model.features",
            16,
            r"model.features is 16; it must be Sequence\[int\], such as \(16,\)",
        ),
        ("model.features", ("a",), r"model.features is \('a',\); it must be Sequence\[int\]"),
        ("model.outputs", "3", "model.outputs is '3', but .* has 3; set the field to 3 or more"),
        ("recipe.batch_size", None, "recipe.batch_size is not set"),
        ("recipe.num_epochs", None, "recipe.num_epochs is not set"),
    ],
)
def test_a_given_size_is_checked(field, value, message, tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    changes = {"data.test_share": 0.25, field: value}
    with pytest.raises(ValueError, match=message):
        make_experiment(make_config(f"{tmp_path}/a.npz", changes))


# ---- models


def fixed(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initial values that depend on the shape alone."""
    del key
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape) * 0.3, dtype)


class LinenNet(nn.Module):
    outputs: int
    ghost_batch_size: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(8, kernel_init=fixed)(x.reshape(x.shape[0], -1))
        x = GhostBatchNorm(self.ghost_batch_size, not train, self.axis_name)(x)
        return nn.Dense(self.outputs, kernel_init=fixed)(nn.relu(x))


class NNXNet(flax_nnx.Module):
    def __init__(self, inputs: int, outputs: int, ghost_batch_size: int, *, axis_name=None, rngs):
        linear = [(inputs, 8), (8, outputs)]
        self.layers = flax_nnx.List(
            [flax_nnx.Linear(*sizes, kernel_init=fixed, rngs=rngs) for sizes in linear]
        )
        self.norm = nnx.GhostBatchNorm(
            8, ghost_batch_size=ghost_batch_size, axis_name=axis_name, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.layers[0](x.reshape(x.shape[0], -1)))
        return self.layers[1](flax_nnx.relu(x))


class WithDropout(flax_nnx.Module):
    def __init__(self, rate: float, of_flax: bool = False, *, rngs):
        self.linear = flax_nnx.Linear(4, 4, rngs=rngs)
        make = flax_nnx.Dropout if of_flax else nnx.Dropout
        self.drop = make(rate, rngs=rngs) if of_flax else make(rate)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.drop(self.drop(self.linear(x)) + 1)


@pytest.mark.parametrize("batch", [4, 16])
def test_ghost_batch_norm_of_nnx_has_equal_bits(batch):
    x = jax.random.normal(jax.random.key(0), (batch, 3, 5)) * 2 + 1
    linen = GhostBatchNorm(4, use_running_average=False)
    variables = linen.init(jax.random.key(1), x)
    module = nnx.GhostBatchNorm(5, ghost_batch_size=4, rngs=flax_nnx.Rngs(0))
    expected, updated = linen.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(module(x), expected)
    for name, value in updated["batch_stats"].items():
        np.testing.assert_array_equal(getattr(module, name)[...], value)
    module.eval()
    evaluating = GhostBatchNorm(4, use_running_average=True)
    np.testing.assert_array_equal(module(x), evaluating.apply(variables | updated, x))


@pytest.mark.parametrize("num_devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_nnx_model_is_trained_as_the_linen_model_is(num_devices, tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    rows = {}
    for name in ("LinenNet", "NNXNet"):
        changes = {
            "data.test_share": 0.25,
            "ghost_batch_size": 2,
            "run.num_devices": num_devices,
            "model": ConfigDict({"name": f"{HERE}:{name}"}),
        }
        if name == "NNXNet":
            changes["model.inputs"] = 25
        _, rows[name] = train_twice(make_config(f"{tmp_path}/a.npz", changes), tmp_path / name)
    for metric in ("train_loss", "test_loss", "test_accuracy"):
        assert rows["NNXNet"][metric] == rows["LinenNet"][metric]


def test_masks_of_nnx_dropout_depend_on_the_examples_alone():
    model = make_model(f"{HERE}:WithDropout", rate=0.5)
    variables = model.init(jax.random.key(0), None)
    x, keys = jnp.ones((8, 4)), jax.random.split(jax.random.key(1), 8)
    whole, _ = apply(model, variables, x, keys, train=True)
    halves = [
        apply(model, variables, x[h], keys[h], train=True)[0] for h in (slice(4), slice(4, 8))
    ]
    np.testing.assert_allclose(whole, jnp.concatenate(halves), rtol=1e-5)
    np.testing.assert_array_equal(whole == 0, jnp.concatenate(halves) == 0)
    assert 0 < (whole == 0).mean() < 1
    other, _ = apply(model, variables, x, jax.random.split(jax.random.key(2), 8), train=True)
    assert (other != whole).any()
    evaluated, _ = apply(model, variables, x, None, train=False)
    assert (evaluated != 0).all()
    with pytest.raises(ValueError, match="variable drop.rngs.count .* batchgrow.models.nnx.Dropo"):
        make_model(f"{HERE}:WithDropout", rate=0.5, of_flax=True)


def test_only_a_model_with_batch_norm_is_asked_for_a_ghost_batch():
    make_model("mlp", features=(8,), outputs=2)
    for name in ("LinenNet", "NNXNet"):
        with pytest.raises(ValueError, match=f"ghost_batch_size is not set, but .*{name} has"):
            make_model(f"{HERE}:{name}", outputs=2)


# ---- optimizer, curve, task


def my_optimizer(momentum: float, scale: float = 2.0) -> optax.GradientTransformation:
    return optax.chain(optax.trace(decay=momentum), optax.scale(scale / 2.0))


def my_sign(weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_sign())


def not_an_optimizer(momentum: float) -> float:
    return momentum


def my_curve(learning_rate: float, num_epochs: float):
    return lambda epoch: learning_rate * (0.5 if epoch >= num_epochs / 2 else 1.0)


def test_an_optimizer_and_a_curve_of_ones_own(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    rows = []
    for optimizer, curve in (("momentum", "step"), (f"{HERE}:my_optimizer", f"{HERE}:my_curve")):
        changes = {
            "data.test_share": 0.25,
            "optimizer.name": optimizer,
            "recipe.curve": curve,
        }
        config = make_config(f"{tmp_path}/a.npz", changes)
        rows.append(train_twice(config, tmp_path / optimizer.replace(":", "_"))[1])
    assert rows[0]["learning_rate"] == rows[1]["learning_rate"]
    assert rows[0]["test_loss"] == pytest.approx(rows[1]["test_loss"], rel=1e-6)


def test_an_optimizer_without_momentum_has_a_recipe_without():
    plan = make_plan(make_config("", {"optimizer.name": f"{HERE}:my_sign"}), 100)
    assert plan.recipe.momentum == 0
    changes = {"optimizer.name": f"{HERE}:my_sign", "plan.momentum": 0.5}
    with pytest.raises(ValueError, match="has no momentum"):
        make_plan(make_config("", changes), 100)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.name", f"{HERE}:not_an_optimizer", "returns a float; return an optax.Gradient"),
        ("optimizer.name", f"{HERE}:absent", "optimizer.name .* cannot be imported"),
        ("optimizer.name", f"{HERE}:fixed", "needs key, shape; add a field of this name"),
        ("recipe.curve", f"{HERE}:absent", "recipe.curve .* cannot be imported"),
        ("recipe.curve", f"{HERE}:constant_number", "returns a float; return a function from"),
    ],
)
def test_wrong_functions(field, value, message, tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(ValueError, match=message):
        make_experiment(make_config(f"{tmp_path}/a.npz", {"data.test_share": 0.25, field: value}))


def constant_number(learning_rate: float) -> float:
    return learning_rate


def test_weight_decay_is_not_dropped_silently(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    changes = {
        "data.test_share": 0.25,
        "optimizer.name": f"{HERE}:my_optimizer",
        "optimizer.weight_decay": 0.1,
    }
    with pytest.raises(ValueError, match="weight_decay is 0.1, but .* has no argument w"):
        make_experiment(make_config(f"{tmp_path}/a.npz", changes))


class Mean:
    """A task without a Flax module: the mean of x."""

    metrics = (Metric("loss", "lower"),)

    def __init__(self, start: float = 0.0):
        self.start = start

    def init(self, key, examples):
        return {"params": {"mean": jnp.full(examples["x"].shape[1:], self.start)}}

    def loss(self, variables, examples, keys, *, train):
        losses = jnp.square(examples["x"] - variables["params"]["mean"][None]).mean(1)
        return Outputs(losses, {}, {})

    def summarize(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


def test_a_task_of_ones_own_needs_no_model(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((40, 2), 3.0))
    changes = {"data.test_share": 0.25, "model": ConfigDict({"name": ""})}
    config = make_config(f"{tmp_path}/a.npz", changes, f"{HERE}:Mean")
    config.task.start = 2.5
    _, row = train_twice(config, tmp_path / "run")
    assert row["test_loss"] < 0.25


# ---- configs and commands

CONFIG = """
import neighbour
from configs import base


def get_config(variant="grow"):
    config = base.get_config()
    config.name = "outside"
    config.variant = variant
    config.data.name = "neighbour:data"
    config.data.num_train_examples = 9  # There are 8.
    config.model.name = "neighbour:Net"
    config.recipe.num_epochs = neighbour.EPOCHS
    config.recipe.batch_size = 4
    config.recipe.learning_rate = 0.1
    config.plan.name = variant
    config.run.tensorboard = config.run.progress = False
    config.run.num_devices = 1
    return config
"""
NEIGHBOUR = """
import flax.linen as nn
import numpy as np

EPOCHS = 1.0


def data(split):
    return {"x": np.zeros((8, 3), np.float32), "y": np.arange(8) % 2}


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(x)
"""


ANY_NUMBER = "--config.data.num_train_examples=None"


def command(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def outside(tmp_path) -> pathlib.Path:
    """A config outside of the repository that imports the file beside it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.py").write_text(CONFIG)
    (tmp_path / "mine/neighbour.py").write_text(NEIGHBOUR)
    return tmp_path / "mine/own.py"


@pytest.mark.slow
def test_commands_take_a_config_outside_of_the_repository(outside, tmp_path):
    command(
        "train",
        f"--config={outside}:decay",
        f"--workdir={tmp_path}/run",
        "--config.seed=3",
        ANY_NUMBER,
    )
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["seed"], config["model"]["num_classes"]) == (3, 2)


@pytest.mark.slow
def test_the_config_of_the_docs_trains(tmp_path):
    table = write_csv(tmp_path / "houses.csv", rows=200)
    table.write_text(table.read_text().replace("a,b,y", "rooms,age,price"))
    config = f"--config=docs/examples/own_config.py:{table}"
    command("train", config, f"--workdir={tmp_path}/run", "--config.recipe.num_epochs=10")
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_r2"] > 0.9
    assert "own_config:heavy_ball" in command("fields", config)


@pytest.mark.slow
def test_the_task_of_the_docs_learns():
    done = subprocess.run(
        [sys.executable, ROOT / "docs/examples/own_task.py"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert -0.35 <= float(done.stdout.split()[-1]) <= -0.2


@pytest.mark.slow
def test_sweep_takes_fields_as_other_commands_do(outside, tmp_path):
    command(
        *("sweep", f"--config={outside}:grow", "--variants=decay,grow", "--seeds=1"),
        *("--config.recipe.learning_rate=0.5", ANY_NUMBER, f"--workdir={tmp_path}/sweep"),
    )
    configs = sorted((tmp_path / "sweep").rglob("config.json"))
    found = [json.loads(path.read_text()) for path in configs]
    assert [(c["variant"], c["recipe"]["learning_rate"]) for c in found] == [
        ("decay", 0.5),
        ("grow", 0.5),
    ]


def test_fields_lists_every_field_with_its_meaning():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.fields", "--config=configs/shakespeare.py"],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = dict(line.removeprefix("--config.").split("=", 1) for line in done.stdout.splitlines())
    own = ("task.", "model.")  # a task or model of another kind has other fields
    declared = [field for field in FIELDS if not field.name.startswith(own)]
    assert [name for name in lines if not name.startswith(own)] == [f.name for f in declared]
    assert all(field.meaning and field.meaning in lines[field.name] for field in declared)
    assert "transformer" in lines["model.name"]


def test_fields_of_a_model_have_the_meaning_that_its_docstring_gives():
    from experiments import fields

    config = base.get_config()
    with config.unlocked():
        config.model.name = "mlp"
    assert fields.comments_of_classes(config)["model.features"] == "units of each hidden layer."


def test_grow_says_so_where_nothing_falls():
    plan = grow(Recipe(10, 0.9, curves.constant(0.1), num_examples=1000, num_epochs=2))
    assert len(plan.segments) == 1
    assert plan.warnings[0].startswith("the learning rate never falls, so the batch does not grow")
    assert decay(plan.recipe).warnings == ()


def downhill(momentum: float) -> optax.GradientTransformation:
    return optax.adamw(1e-3, b1=momentum)


def test_an_optimizer_with_a_learning_rate_is_refused():
    config = tiny.make_config(
        {
            "optimizer.name": f"{__name__}:downhill",
            "plan.exponent": 1.0,
            "optimizer.weight_decay": 0.0,
        }
    )
    with pytest.raises(ValueError, match="already has a learning rate"):
        make_experiment(config)


class WithoutTrain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_linen_model_without_train_is_refused():
    config = tiny.make_config({"model.name": f"{__name__}:WithoutTrain"})
    del config.model["num_classes"], config.model["dtype"]
    with pytest.raises(ValueError, match="__call__ has no argument `train`"):
        make_experiment(config)
