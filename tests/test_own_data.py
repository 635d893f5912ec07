"""One's own data, without a change of the library, and what is said of wrong data."""

import json
import pathlib
import sys
import types
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from own import ARRAYS, make_config, train_twice, write_csv, write_images

from batchgrow.config import make_experiment
from batchgrow.data import hugging_face
from batchgrow.data.catalog import open_part
from batchgrow.data.datasets import SourceDataset
from batchgrow.data.source import Source

ROOT = pathlib.Path(__file__).parents[1]
HERE = "test_own_data"


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
    with pytest.raises(ValueError, match="has a test split.*leave data.test_share at None"):
        make_experiment(make_config(f"npz:{tmp_path}/a.npz", {"data.test_share": 0.25}))
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


def test_tokens_below_zero_are_refused(tmp_path):
    """As with rows that were filled up with -1."""
    np.savez(tmp_path / "t.npz", tokens=np.full((40, 9), -1))
    changes = {"data.test_share": 0.1, "model": transformer()}
    with pytest.raises(ValueError, match="the array 'tokens' has -1; tokens are whole numbers"):
        make_experiment(make_config(f"{tmp_path}/t.npz", changes, "language"))


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


def test_classes_are_numbered_in_the_same_order_in_every_process(tmp_path):
    """Numbers first, by size; then words and "nan", whose order as a number is undefined."""
    (tmp_path / "c.csv").write_text("a,kind\n" + "1,yes\n2,NaN\n3,no\n4,10\n5,9\n" * 8)
    changes = {"data.test_share": 0.25, "data.target": "kind"}
    experiment = make_experiment(make_config(f"csv:{tmp_path}/c.csv", changes))
    parts = (experiment.train_data.arrays, experiment.test_data.arrays)
    a, labels = (np.concatenate([part[name] for part in parts]) for name in ("image", "label"))
    _, place = np.unique(a, return_inverse=True)
    expected = np.array([4, 2, 3, 1, 0])[place.ravel()]  # among 9, 10, NaN, no, yes
    np.testing.assert_array_equal(labels, expected)


def test_a_share_of_an_embedded_text_is_its_end():
    """Training and test data have no token in common, as with a text of one's own."""
    source = Source("python_topics", context=64)
    whole = open_part(source, "train").arrays["tokens"]
    shared = replace(source, test_share=0.25)
    parts = [open_part(shared, part).arrays["tokens"] for part in ("train", "test")]
    assert len(parts[1]) == round(len(whole) / 4)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_inputs_without_features_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(40, np.float32), y=np.arange(40) % 2)
    with pytest.raises(ValueError, match="each example of the inputs is one number; give them a"):
        make_experiment(make_config(f"{tmp_path}/a.npz", {"data.test_share": 0.25}))


def test_another_task_needs_no_new_section(tmp_path):
    write_csv(tmp_path / "a.csv")
    changes = {"data.test_share": 0.2, "data.target": "y", "task.name": "regression"}
    experiment = make_experiment(make_config(f"csv:{tmp_path}/a.csv", changes))
    assert type(experiment.task).__name__ == "Regression"
    changes["task.augment"] = "flip"
    with pytest.raises(
        ValueError, match="'regression' has no field task.augment; there are auxiliary_weight"
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
    Image = pytest.importorskip("PIL.Image")
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
    with pytest.raises(ValueError, match="has one split; set data.test_share"):
        make_experiment(make_config(f"hf:{tmp_path}/table", changes | {"data.test_share": None}))
    # A palette is no grey image, and 16 bits do not become 8 without a word.
    palette = [Image.fromarray(np.uint8([[[255, 0, 0], [0, 255, 0]]] * 2)).convert("P")] * 8
    deep = [Image.fromarray(np.full((2, 2), 1000, np.uint16))] * 8
    for name, images in {"palette": palette, "deep": deep}.items():
        made = datasets.Dataset.from_dict(
            {"img": images, "kind": [0, 1] * 4},
            features=datasets.Features(
                {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}
            ),
        )
        made.save_to_disk(str(tmp_path / name))
    coloured = make_experiment(make_config(f"hf:{tmp_path}/palette", changes))
    np.testing.assert_array_equal(
        coloured.train_data.arrays["image"][0], [[[255, 0, 0], [0, 255, 0]]] * 2
    )
    with pytest.raises(ValueError, match="images of mode 'I;16' are not supported"):
        make_experiment(make_config(f"hf:{tmp_path}/deep", changes))
    book = datasets.Dataset.from_dict({"text": ["abc" * 100]})
    book.save_to_disk(str(tmp_path / "book"))
    one = {"data.context": 8, "model": transformer(), "data.test_share": 0.1}
    assert make_experiment(
        make_config(f"hf:{tmp_path}/book", one, "language")
    ).test_data.num_examples
    texts = datasets.Dataset.from_dict({"text": ["abc", "cab"] * 40})
    both = datasets.DatasetDict(train=texts, test=texts)
    both.save_to_disk(str(tmp_path / "texts"))
    changes = {"data.context": 8, "model": transformer()}
    experiment = make_experiment(make_config(f"hf:{tmp_path}/texts", changes, "language"))
    assert experiment.task.model.vocab_size == 4


def test_no_colour_of_hugging_face_is_lost():
    source: Any = types.SimpleNamespace(name="hf:some")
    with pytest.raises(ValueError, match="the first images are grey, and another has mode 'RGB'"):
        hugging_face._check_mode("RGB", "L", source)
    hugging_face._check_mode("L", "RGB", source)


def test_tfds_is_a_name_with_or_without_its_prefix(tmp_path):
    for name in ("no_such_data", "tfds:no_such_data"):
        changes = {"run.data_dir": str(tmp_path)}
        with pytest.raises(ValueError, match="'no_such_data'"):
            make_experiment(make_config(name, changes))


def of_two_arguments(split: str, more: int) -> dict[str, np.ndarray]:
    return as_arrays(split)


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
            f"{HERE}:of_two_arguments",
            {},
            "missing 1 required",
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
        (
            "model.num_classes",
            3,
            "mlp has no field model.num_classes; there are dropout, dtype, fea",
        ),
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
