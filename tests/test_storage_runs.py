"""Whole runs on an object store (tests/store.py)."""

import json
import pathlib
from typing import Any

import pytest
from test_runlog import event_files
from test_storage import RUN
from tiny import make_config, read_rows

from batchgrow import report
from batchgrow.data.sources import open_source
from batchgrow.run.signals import Preemption
from batchgrow.run.timers import TIMING
from batchgrow.train import Outcome, train


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
    assert len(event_files(bucket / "run")) == 1
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


def test_data_cannot_be_read_from_s3() -> None:
    with pytest.raises(ValueError, match="run.data_dir 's3://bucket/tfds'.*mount the bucket"):
        open_source("cifar10", "test", "s3://bucket/tfds")
