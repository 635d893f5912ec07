"""The files of a run folder on an object store (tests/store.py)."""

import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from etils.epath import backend
from orbax.checkpoint._src.serialization import tensorstore_utils
from test_runlog import ROWS, event_files, points, read, shown, write

from batchgrow.run import files, s3
from batchgrow.run.checkpoints import Checkpoints, positions_of
from batchgrow.run.folder import FolderError, claim, write_json
from batchgrow.run.log import LogMark, RunLog
from batchgrow.tasks import Metric

RUN = "s3://bucket/run"


def open_log(mark: LogMark | None = None, tensorboard: bool = False) -> RunLog:
    return RunLog(epath.Path(RUN), mark=mark, tensorboard=tensorboard)


def test_the_log_is_put_now_and_then_and_before_a_checkpoint(
    bucket: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log() as log:
        log.write(ROWS[0])
        assert read(bucket / "run") == []
        log.mark()
        assert read(bucket / "run") == ROWS[:1]
        monkeypatch.setattr(files, "PUT_SECONDS", 0.0)
        log.write(ROWS[1])
        assert read(bucket / "run") == ROWS[:2]


def test_rows_not_yet_put_are_there_when_the_log_is_closed(bucket: pathlib.Path) -> None:
    with open_log(tensorboard=True) as log:
        log.write(ROWS[0])
    assert read(bucket / "run") == ROWS[:1]


def test_a_resumed_run_goes_back_to_its_mark(bucket: pathlib.Path, caplog: Any) -> None:
    with open_log(tensorboard=True) as log:
        marks = write(log, ROWS[:4])
    with open_log(marks[2], tensorboard=True) as log:
        assert read(bucket / "run") == ROWS[:2] == list(log.rows())
        write(log, ROWS[2:])
    assert read(bucket / "run") == ROWS and not caplog.messages
    expected = [(row["updates"], row["train_loss"]) for row in ROWS]
    assert points(shown(bucket / "run"), "by_updates/train_loss") == expected
    assert len(event_files(bucket / "run")) == 1
    (bucket / "run" / "metrics.jsonl").write_text("")
    with open_log(marks[2]) as log:
        assert read(bucket / "run") == []
        assert log.last == ROWS[1]
    assert "2 of the 2 rows before the checkpoint are lost" in caplog.text


def test_checkpoints_and_the_claim(bucket: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    def make_state(seed: int) -> jax.Array:
        return jnp.arange(7.0) + seed

    def open_checkpoints() -> Checkpoints:
        return Checkpoints(folder, keep=2, metric=Metric("loss", "lower"), config={"seed": 0})

    with claim(RUN, is_writer=True) as folder:
        write_json(folder / "task.json", {"format": 2})
        with open_checkpoints() as checkpoints:
            for step in (10, 20, 30):
                checkpoints.save(step, make_state(step), {"step": step}, 1.0)
    assert positions_of(RUN)[-1] == 30
    for path in (bucket / "run" / "checkpoints" / "30" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    with claim(RUN, is_writer=True) as folder, open_checkpoints() as checkpoints:
        restored = checkpoints.restore(make_state(0))
        assert restored is not None
        assert (restored[0], restored[2]) == (20, {"step": 20})
        assert (restored[1] == make_state(20)).all()
    assert (bucket / "run" / "checkpoints" / "30.bad").is_dir()
    assert "set aside as 30.bad" in caplog.text


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


@pytest.mark.parametrize(
    ("version", "gone", "said"),
    [
        ("0.12.7", None, "need orbax-checkpoint 0.12.8, and 0.12.7 is installed"),
        (s3.VERSION, "_use_gcs_driver", r"0.12.8 is installed \(it has no _use_gcs_driver\)"),
    ],
)
def test_another_version_of_orbax_is_refused_before_anything_is_written(
    bucket: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    gone: str | None,
    said: str,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    if gone:
        monkeypatch.delattr(tensorstore_utils, gone)
    with pytest.raises(FolderError, match=said) as told:
        Checkpoints(epath.Path(RUN), keep=2, metric=Metric("loss", "lower"), config={})
    assert "\n" not in str(told.value) and "pip install orbax-checkpoint==0.12.8" in str(told.value)
    assert not (bucket / "run").exists()


def test_the_extra_pins_the_version_of_orbax_that_is_known() -> None:
    setup = (pathlib.Path(__file__).parents[1] / "setup.py").read_text()
    assert f'"orbax-checkpoint=={s3.VERSION}"' in setup
