"""Run folders on an object store: a folder of this disk behind `s3://`, reached as a store is.

`fsspec` serves the files, TensorStore the arrays, both from the same folder.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils
from test_runlog import ROWS, read
from tiny import make_config, read_rows

from batchgrow import files, report, s3
from batchgrow.data.sources import open_source
from batchgrow.loop import Outcome
from batchgrow.run.signals import Preemption
from batchgrow.run.folder import FolderError, claim
from batchgrow.run.log import TIMING, RunLog
from batchgrow.train import train

RUN = "s3://bucket/run"


class Store(DirFileSystem):
    """Objects in a folder: no directory is made by itself, nothing is moved in place."""

    def _join(self, path: Any) -> Any:
        return super()._join(path.removeprefix("s3://") if isinstance(path, str) else path)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        assert "a" not in mode, f"{path}: a store cannot append"
        return super().open(path, mode, **options)

    def mkdir(self, path: str, **_: Any) -> None:
        pass

    makedirs = mkdir


@pytest.fixture
def bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder behind `s3://bucket`."""
    store = Store(str(tmp_path), LocalFileSystem(auto_mkdir=True))

    def kvstore(path: str) -> dict[str, str]:
        return {"driver": "file", "path": f"{tmp_path}/{path.removeprefix('s3://')}"}

    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: store)
    monkeypatch.setattr(s3, "kvstore", kvstore)
    for module, name in (  # what `teach_orbax` sets
        (gcs_utils, "_GCS_PATH_PREFIX"),
        (gcs_utils, "get_kvstore_for_gcs"),
        (tensorstore_utils, "_use_gcs_driver"),
        (tensorstore_utils, "_normalize_path"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    return tmp_path / "bucket"


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(workdir)]


def damage_newest(run: pathlib.Path) -> None:
    """Cuts every file with arrays of the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in (newest / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])


def preempt_at(monkeypatch: pytest.MonkeyPatch, dispatches: int) -> None:
    asked = iter(range(1, 1000))
    monkeypatch.setattr(Preemption, "requested", lambda _: next(asked) == dispatches)


def test_a_whole_life_on_a_store(
    bucket: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    config = make_config({"run.tensorboard": True, "run.updates_per_dispatch": 1})
    train(config, str(tmp_path / "disk"))
    for dispatches in (4, 3):
        preempt_at(monkeypatch, dispatches)
        assert train(config, RUN) is Outcome.PREEMPTED
    # Killed, say: the log is behind its checkpoint, and the newest checkpoint is damaged.
    (bucket / "run" / "metrics.jsonl").write_text("")
    (bucket / "run" / "config.json").write_text('{"name"')
    damage_newest(bucket / "run")
    assert train(config, RUN) is Outcome.FINISHED
    assert "set aside as 224.bad" in caplog.text
    assert (bucket / "run" / "checkpoints" / "224.bad").is_dir()
    assert rows(bucket / "run") == rows(tmp_path / "disk")
    plain = bucket / "run" / "checkpoints" / "736" / "state"
    assert plain.is_dir()
    assert not list((bucket / "run").rglob("*.new"))
    assert len(list((bucket / "run" / "tensorboard").iterdir())) == 1
    # Found again by a report, and by the same command.
    assert report.find_runs(["s3://bucket"]) == [RUN]
    report.write_report([report.read_run(RUN)], "s3://bucket/report")
    assert json.loads((bucket / "report" / "report.json").read_text())["runs"][0]["path"] == RUN
    assert "<svg" in (bucket / "report" / "index.html").read_text()
    assert train(config, RUN) is Outcome.FINISHED


def test_a_checkpoint_that_was_half_put_is_none(
    bucket: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no rename that would finish one: a mark is put last."""
    config = make_config({"run.updates_per_dispatch": 1})
    for dispatches in (4, 3):
        preempt_at(monkeypatch, dispatches)
        assert train(config, RUN) is Outcome.PREEMPTED
    newest = bucket / "run" / "checkpoints" / "224"
    (newest / "commit_success.txt").unlink()
    for path in (newest / "state").rglob("d/*"):
        path.unlink()
    preempt_at(monkeypatch, 3)
    assert train(config, RUN) is Outcome.PREEMPTED  # 128 + 3 * 32: where it was
    assert (newest / "commit_success.txt").exists()
    assert train(config, RUN) is Outcome.FINISHED
    assert not list((bucket / "run").rglob("*.bad"))


def test_the_log_is_put_now_and_then_and_when_closed(
    bucket: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog(epath.Path(RUN), rows=[], tensorboard=False) as log:
        log.write(ROWS[0])
        assert read(bucket / "run") == []
        monkeypatch.setattr(files, "PUT_SECONDS", 0.0)
        log.write(ROWS[1])
        assert read(bucket / "run") == ROWS[:2]


def test_rows_not_yet_put_are_there_when_the_log_is_closed(bucket: pathlib.Path) -> None:
    with RunLog(epath.Path(RUN), rows=ROWS[:1], tensorboard=True) as log:
        log.write(ROWS[1])
    assert read(bucket / "run") == ROWS[:2]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("Unable to locate credentials"), "cannot be written (Unable to locate cred"),
        (ImportError("Install s3fs to access S3"), "access S3; pip install -e '.[s3]'"),
    ],
)
def test_a_store_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fail(_: Any) -> Callable:
        raise raised

    monkeypatch.setattr(backend.fsspec_backend, "fs", fail)
    with pytest.raises(FolderError) as told, claim(RUN, is_writer=True):
        pass
    assert said in str(told.value)


def test_tensorstore_is_told_the_endpoint_that_s3fs_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    monkeypatch.setenv("AWS_REGION", "here")
    assert s3.kvstore("s3://bucket/a/b") == {
        "driver": "s3",
        "bucket": "bucket",
        "path": "a/b",
        "endpoint": "http://localhost:9000",
        "aws_region": "here",
    }
    assert s3.kvstore("gs://bucket/a")["driver"] == "gcs"


def test_data_cannot_be_read_from_s3() -> None:
    with pytest.raises(ValueError, match="run.data_dir 's3://bucket/tfds'.*mount the bucket"):
        open_source("cifar10", "test", "s3://bucket/tfds")
