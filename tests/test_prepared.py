"""Data sets of tensorflow_datasets that are missing, unknown or damaged: one line each."""

import json
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from batchgrow.data.catalog import name_of_tfds
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
    with pytest.raises(
        ValueError,
        match="'no_such_set' in .* is not there, and .* not know it; check the name and the folder",
    ) as e:
        open_source("no_such_set", "train", str(tmp_path))
    assert "\n" not in str(e.value)


def test_a_split_may_be_a_slice(prepared):
    for split, size in {"train[:4]": 4, "train[50%:]": 3, "train[4:]+validation[:1]": 3}.items():
        assert len(open_source("imagenet2012", split, str(prepared), decode=False)) == size


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


# A data set whose server takes the request and never answers.
CONFIG = """
import tensorflow_datasets as tfds
from configs import digits

class Unanswered(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({{"label": tfds.features.ClassLabel(num_classes=2)}})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {{"train": self._generate_examples(manager.download("{address}/file"))}}

    def _generate_examples(self, path):
        yield 0, {{"label": 0}}

def get_config(variant=""):
    config = digits.get_config("increasing_batch")
    config.data.name = "unanswered"
    return config
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_download_stops_at_the_first_signal(number, tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "config.py").write_text(CONFIG.format(address=address))
        flags = [f"--config={tmp_path}/config.py", f"--data_dir={data}", f"--workdir={workdir}"]
        command = [sys.executable, "-m", "experiments.train", "--download", *flags]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            server.settimeout(120)
            connection, _ = server.accept()
            process.send_signal(number)
            said, status = process.communicate(timeout=60)[1], process.returncode
            connection.close()
    assert status == 75, said
    assert f"{number.name}: stopping; training has not begun" in said and "Traceback" not in said
    assert not workdir.exists() and not list(data.glob("unanswered*/*"))


def test_which_names_are_of_tensorflow_datasets():
    names = ("cifar10", "tfds:mnist", "tiny_shakespeare", "digits", "diabetes", "csv:a.csv", "m:f")
    found = ["cifar10", "mnist", "tiny_shakespeare", *[None] * 4]
    assert [name_of_tfds(name) for name in names] == found


DOWNLOADS = """
from experiments import launch
from experiments.lab import __main__ as lab

launch.download = lambda name, data_dir: print(name)
lab.experiment_of = launch.obey_data_flags  # of every run, but no data is read
lab.run_cells = lambda grid: 1
launch.launch(lab.main, positional=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("study", "downloaded"), [("transfer", "cifar10\n"), ("interactions", "")])
def test_a_study_downloads_what_its_functions_read(study, downloaded, tmp_path):
    command = [sys.executable, "-c", DOWNLOADS, study, "--download", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, downloaded), done.stderr
