import pytest

from batchgrow.run.progress import Progress
from batchgrow.tasks import Metric

METRICS = (Metric("loss", "lower"), Metric("accuracy", "higher", percent=True))
ROW = {
    "examples_seen": 500,
    "epoch": 2.5,
    "batch_size": 64,
    "learning_rate": 0.1,
    "train_loss": 0.25,
    "train_accuracy": 0.9,
    "examples_per_second": 12345.6,
}


def test_evaluated_rows_are_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, 0, "digits:grow", True, METRICS) as progress:
        progress.row(ROW)
        progress.row({**ROW, "test_loss": 0.3, "test_accuracy": 0.875})
        progress.row({**ROW, "test_loss": float("nan")})
    lines = capsys.readouterr().err.splitlines()
    start = "digits:grow:  50%  epoch 2.5  batch 64  lr 0.1  loss 0.250  "
    assert lines == [
        start + "test_loss 0.3  test_accuracy 87.50%  12,346 ex/s",
        start + "test_loss nan  12,346 ex/s",
    ]


def test_nothing_is_shown_if_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, 0, "digits:grow", False, METRICS) as progress:
        progress.row({**ROW, "test_loss": 0.3})
        progress.say("resumed")
    assert not capsys.readouterr().err
