"""Rows of a run folder go to a tracker once each, by examples."""

import json
import sys
import types

from batchgrow.__main__ import main
from batchgrow.tracking import send_rows, wandb_sender


def write(folder, *positions: int, end: str = "") -> None:
    rows = [{"examples_seen": n, "train_loss": 1 / n} for n in positions]
    text = "".join(json.dumps(row) + "\n" for row in rows) + end
    (folder / "metrics.jsonl").write_text(text)


def test_each_row_is_sent_once(tmp_path) -> None:
    sent = []
    assert send_rows(tmp_path, sent.append) == -1  # No rows yet.
    write(tmp_path, 10, 20, end='{"examples_seen": 3')  # A row that is being written.
    after = send_rows(tmp_path, sent.append)
    write(tmp_path, 10)  # A resume cuts the file back to its checkpoint,
    after = send_rows(tmp_path, sent.append, after=after)
    write(tmp_path, 10, 20, 30)  # and writes the rows after it again.
    after = send_rows(tmp_path, sent.append, after=after)
    assert [row["examples_seen"] for row in sent] == [10, 20, 30] and after == 30
    assert sent[1] == {"examples_seen": 20, "train_loss": 0.05}


def test_follows_until_the_run_has_finished(tmp_path) -> None:
    sent = []
    write(tmp_path, 10)

    def send(row) -> None:
        sent.append(row["examples_seen"])
        if len(sent) == 1:
            write(tmp_path, 10, 20)
            (tmp_path / "summary.json").write_text("{}")

    assert send_rows(tmp_path, send, poll_seconds=0.01) == 20
    assert sent == [10, 20]


class FakeRun:
    id = "abc"

    def __init__(self, **arguments):
        self.arguments, self.metrics, self.rows, self.finished = arguments, {}, [], False

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


def test_examples_are_the_x_axis() -> None:
    run = FakeRun()
    wandb_sender(run)({"examples_seen": 5, "test_loss": 1.0})
    assert run.metrics == {"examples_seen": None, "*": "examples_seen"}
    assert run.rows == [{"examples_seen": 5, "test_loss": 1.0}]


def test_command_continues_a_wandb_run(tmp_path, monkeypatch, capsys) -> None:
    runs = []

    def init(**arguments):
        runs.append(FakeRun(**arguments))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    folder = tmp_path / "my_run"
    folder.mkdir()
    (folder / "config.json").write_text('{"seed": 3}')
    for positions in ((10, 20), (10, 20, 30)):
        write(folder, *positions)
        assert main(["track", str(folder), "--wandb=project"]) == 0
    first, second = runs
    assert [row["examples_seen"] for row in first.rows + second.rows] == [10, 20, 30]
    assert first.arguments == {
        **{"project": "project", "name": "my_run", "config": {"seed": 3}},
        **{"id": None, "resume": "allow"},
    }
    assert second.arguments["id"] == "abc" and first.finished and second.finished
    assert main(["track", str(tmp_path / "none"), "--wandb=project"]) == 2
    assert capsys.readouterr().err.endswith("none is not a run folder\n")
