"""Whole runs on an object store (tests/store.py)."""

import json
import pathlib
from typing import Any

import pytest
from test_runlog import event_files
from test_storage import RUN
from tiny import read_rows, tiny_experiment

from batchgrow import report
from batchgrow.data.prepared import open_source
from batchgrow.experiment import Experiment
from batchgrow.run.timers import TIMING
from batchgrow.train import Outcome, train


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(workdir)]


def damage_newest(run: pathlib.Path) -> None:
    """Cuts every file with arrays of the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in (newest / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])


def preempt_after(dispatches: int, experiment: Experiment) -> None:
    """Trains on the store for so many dispatches."""
    asked = iter(range(1, 1000))
    outcome = train(experiment, RUN, watch=lambda *_: next(asked) == dispatches)
    assert outcome is Outcome.PREEMPTED


def test_a_whole_life_on_a_store(bucket: pathlib.Path, tmp_path: pathlib.Path, caplog: Any) -> None:
    experiment = tiny_experiment({"run.tensorboard": True, "run.updates_per_dispatch": 1})
    train(experiment, str(tmp_path / "disk"))
    for dispatches in (4, 3):
        preempt_after(dispatches, experiment)
    # As after a crash: a half-written config, and the newest checkpoint is damaged.
    (bucket / "run" / "config.json").write_text('{"name"')
    damage_newest(bucket / "run")
    assert train(experiment, RUN) is Outcome.FINISHED
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
    assert train(experiment, RUN) is Outcome.FINISHED


@pytest.mark.slow
def test_a_checkpoint_that_was_half_put_is_none(
    bucket: pathlib.Path,
) -> None:
    """There is no rename that would finish one: a mark is put last."""
    experiment = tiny_experiment({"run.updates_per_dispatch": 1})
    for dispatches in (4, 3):
        preempt_after(dispatches, experiment)
    newest = bucket / "run" / "checkpoints" / "224"
    (newest / "commit_success.txt").unlink()
    for path in (newest / "state").rglob("d/*"):
        path.unlink()
    preempt_after(3, experiment)  # 128 + 3 * 32: where it was
    assert (newest / "commit_success.txt").exists()
    assert train(experiment, RUN) is Outcome.FINISHED
    assert not list((bucket / "run").rglob("*.bad"))


def test_data_cannot_be_read_from_s3() -> None:
    with pytest.raises(ValueError, match="run.data_dir 's3://bucket/tfds'.*mount the bucket"):
        open_source("cifar10", "test", "s3://bucket/tfds")
