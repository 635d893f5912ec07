"""Data sets: examples by index, their shapes, and evaluation batches."""

import pathlib
import random
from typing import Any

import jax
import numpy as np
import pytest

from batchgrow.data.catalog import load_images, open_dataset
from batchgrow.data.datasets import (
    ArrayDataset,
    InMemory,
    SourceDataset,
    evaluation_batches,
)
from batchgrow.data.tables import load_table


def numbered(num_examples: int) -> ArrayDataset:
    """Example i has an image filled with i, and the number i."""
    numbers = np.arange(num_examples)
    image = np.broadcast_to(numbers[:, None, None, None], (num_examples, 3, 3, 1))
    return ArrayDataset({"image": image.astype(np.uint8), "number": numbers.astype(np.int32)})


def as_list(data: ArrayDataset) -> SourceDataset:
    return SourceDataset([data.gather(np.array(i)) for i in range(data.num_examples)])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_examples_are_gathered_in_any_shape(shape):
    arrays, source = numbered(50), as_list(numbered(50))
    indices = np.random.default_rng(0).integers(0, 50, shape)
    for data in (arrays, source):
        found = data.gather(indices)
        np.testing.assert_array_equal(found["number"], indices)
        assert found["image"].shape == (*shape, 3, 3, 1)
        np.testing.assert_array_equal(found["image"][..., 0, 0, 0], indices)
    on_device = jax.tree.map(jax.numpy.asarray, arrays.arrays)
    taken = arrays.take(on_device, jax.numpy.asarray(indices))
    jax.tree.map(np.testing.assert_array_equal, taken, arrays.gather(indices))


def test_shapes_of_an_example():
    expected = {
        "image": jax.ShapeDtypeStruct((3, 3, 1), np.uint8),
        "number": jax.ShapeDtypeStruct((), np.int32),
    }
    for data in (numbered(5), as_list(numbered(5))):
        assert data.example == expected
        assert data.num_examples == 5
    assert isinstance(numbered(5), InMemory) and not isinstance(as_list(numbered(5)), InMemory)


def test_arrays_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="unequal length .x 1,000, y 999.: give one entry"):
        ArrayDataset({"x": np.zeros(1000), "y": np.zeros(999)})
    with pytest.raises(ValueError, match="unequal length .x.left 2, x.right 3.: give one entry"):
        ArrayDataset({"x": {"left": np.zeros(2), "right": np.zeros(3)}})


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (8, 4), (3, 8), (1, 2)])
def test_evaluation_covers_every_example_once(num_examples, batch_size, process_count):
    parts = [
        list(evaluation_batches(numbered(num_examples), batch_size, process, process_count))
        for process in range(process_count)
    ]
    assert len({len(batches) for batches in parts}) == 1  # all processes evaluate together
    batches = [batch for batches in parts for batch in batches]
    assert {len(batch["mask"]) for batch in batches} == {batch_size // process_count}
    seen: list[Any] = []
    for batch in batches:
        numbers = batch["examples"]["number"][batch["mask"] == 1]
        np.testing.assert_array_equal(
            batch["examples"]["image"][batch["mask"] == 1, 0, 0, 0], numbers
        )
        seen += numbers.tolist()
    assert sorted(seen) == list(range(num_examples))


def test_digits_are_split_without_overlap():
    train, test = (load_images("digits", split).arrays for split in ("train", "test"))
    assert train["image"].shape == (1437, 8, 8, 1) and test["image"].shape == (360, 8, 8, 1)
    assert train["image"].dtype == np.uint8 and train["image"].max() == 240
    together = {image.tobytes() for image in np.concatenate([train["image"], test["image"]])}
    assert len(together) == 1797
    assert set(train["label"]) == set(test["label"]) == set(range(10))


def test_the_table_is_split_without_overlap():
    train, test = (load_table("diabetes", split) for split in ("train", "test"))
    assert train["x"].shape == (353, 10) and test["x"].shape == (89, 10)
    assert train["y"].shape == (353, 1) and train["y"].dtype == np.float32
    rows = np.concatenate([train["x"], test["x"]])
    assert len({row.tobytes() for row in rows}) == 442
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose((rows**2).mean(0), 1, rtol=1e-5)
    y = np.concatenate([train["y"], test["y"]])
    assert test["y"].shape == (89, 1) and (y.min(), y.max()) == (25, 346)
    with pytest.raises(ValueError, match="data.name 'houses' is not a table"):
        load_table("houses", "train")


def one_more_than_train(split: str) -> ArrayDataset:
    return numbered(8 + (split != "train"))


def test_a_data_set_of_your_own_by_module_and_function():
    name = "test_datasets:one_more_than_train"
    assert open_dataset(name, "train").num_examples == 8
    assert open_dataset(name, "test").num_examples == 9
    with pytest.raises(ValueError, match="data.name 'test_datasets:none' cannot be imported"):
        open_dataset("test_datasets:none", "train")


@pytest.mark.parametrize("name", ["digits", "diabetes", "python_topics"])
def test_unknown_splits_name_the_known(name):
    with pytest.raises(
        ValueError, match=f"{name} has no split 'validation': set data.train_split and"
    ):
        open_dataset(name, "validation", context=8)


def test_a_text_needs_a_context():
    with pytest.raises(ValueError, match="data.context is not set"):
        open_dataset("python_topics", "train")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused_or_read_whole(write: Any, tmp_path: pathlib.Path) -> None:
    """Wherever a bit is flipped, and wherever it ends."""
    path, rng = tmp_path / "a.npz", random.Random(0)
    arrays = {"image": np.arange(96, dtype=np.uint8).reshape(6, 4, 4, 1), "label": np.arange(6)}
    write(path, **arrays)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content if place % 50 else whole[:place])
        try:
            found: Any = open_dataset(f"npz:{path}", "train")
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        for name, array in found.arrays.items():  # One may be lost; a task says what it misses.
            np.testing.assert_array_equal(array, arrays[name])
    assert len(whole) / 2 < refused < len(whole)
