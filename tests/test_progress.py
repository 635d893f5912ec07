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
        later = {**ROW, "examples_seen": 600, "epoch": 3.0}
        progress.row({**later, "test_loss": 0.3, "test_accuracy": 0.875})
        progress.row({**later, "examples_seen": 700, "test_loss": float("nan")})
    lines = capsys.readouterr().err.splitlines()
    facts = "epoch 3.0  batch 64  lr 0.1  loss 0.250  "
    assert lines == [
        f"digits:grow:  60%  {facts}test_loss 0.3  test_accuracy 87.50%  12,346 ex/s",
        f"digits:grow:  70%  {facts}test_loss nan  12,346 ex/s",
    ]


def test_a_row_of_one_update_is_not_shown_as_a_spike(capsys: pytest.CaptureFixture[str]) -> None:
    """480 examples of loss 0.25 in 0.48 s, and after a growth 20 of loss 2.75 in 0.02 s."""
    speed = {"examples_per_second": 1000.0}
    with Progress(1000, 20, "digits:grow", True, METRICS) as progress:
        progress.row({**ROW, **speed, "examples_seen": 500})
        alone = {"examples_seen": 520, "batch_size": 20, "train_loss": 2.75}
        progress.row({**ROW, **speed, **alone, "test_loss": 0.3})
    (line,) = capsys.readouterr().err.splitlines()
    assert "batch 20  lr 0.1  loss 0.350  test_loss 0.3  1,000 ex/s" in line


def test_nothing_is_shown_if_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, 0, "digits:grow", False, METRICS) as progress:
        progress.row({**ROW, "test_loss": 0.3})
        progress.say("resumed")
    assert not capsys.readouterr().err
