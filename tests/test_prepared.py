"""Data sets of tensorflow_datasets that are missing, unknown or damaged: one line each."""

import json
import pathlib

import pytest

from batchgrow.data.prepared import is_prepared, open_source, read_all
from experiments import make_fake_imagenet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    make_fake_imagenet.make(str(folder), 6, 2, num_classes=2, seed=0)
    return folder


def test_a_missing_data_set_is_not_downloaded_and_its_folder_not_made(tmp_path):
    folder = tmp_path / "typo"
    with pytest.raises(ValueError, match="'mnist' in run.data_dir .*typo' is not prepared; .* add"):
        open_source("mnist", "train", str(folder))
    assert not folder.exists()


def test_an_unfinished_version_is_not_warned_of(tmp_path, caplog):
    (tmp_path / "mnist/3.0.1").mkdir(parents=True)
    assert not is_prepared("mnist", str(tmp_path))
    with pytest.raises(ValueError, match="is not prepared"):
        open_source("mnist", "train", str(tmp_path))
    assert caplog.messages == []


def test_an_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="'no_such_set' in .*; check the name and the folder") as e:
        open_source("no_such_set", "train", str(tmp_path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped"])
def test_a_damaged_file_is_one_line(damage, prepared, tmp_path):
    source = read_all("imagenet2012", "train", str(prepared))
    assert len(source) == 6
    folder = tmp_path / "imagenet2012"
    for path in sorted(p for p in prepared.rglob("*") if p.is_file()):
        copy = tmp_path / path.relative_to(prepared)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (record,) = folder.rglob("*train*array_record*")
    content = bytearray(record.read_bytes())
    if damage == "missing":
        record.unlink()
    elif damage == "flipped":
        content[len(content) // 3] ^= 1
        record.write_bytes(content)
    else:
        record.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match="'imagenet2012' in run.data_dir") as error:
        read_all("imagenet2012", "train", str(tmp_path))
    assert "\n" not in str(error.value) and "prepare it again" in str(error.value)
    assert json.loads(next(folder.rglob("dataset_info.json")).read_text())
