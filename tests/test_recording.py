"""Measurements that are made once, in order, until the time is up, and shown on a page."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from batchgrow.run import environment
from experiments import gpu_tables, recording
from experiments.recording import Measurement, markdown_table, page, record

RESULT = {
    "rows": [{"batch_size": 128, "ratio": 1.17}, {"batch_size": 640, "ratio": None}],
    "notes": ["as README has it"],
    "devices": {"kind": "a device", "count": 1},
    "versions": {"jax": "0.10.2"},
    "commit": "abc",
    "command": "python -m experiments.bench",
}
ALL = [Measurement(name, (name, "--json")) for name in ("first", "second", "third")]


@pytest.fixture
def made(monkeypatch):
    """The names of the measurements that were made; "second" fails."""
    names = []

    def measure(measurement, seconds):
        if seconds <= 0:
            raise TimeoutError("no time left")
        names.append(measurement.name)
        if measurement.name == "second":
            raise ChildProcessError("exit status 1")
        return RESULT

    monkeypatch.setattr(recording, "_measure", measure)
    return names


def test_what_is_there_is_not_measured_again(made, tmp_path, capsys):
    assert record(ALL, tmp_path, minutes=1) == 1
    assert made == ["first", "second", "third"]
    assert "second: exit status 1" in capsys.readouterr().err
    assert record(ALL, tmp_path, minutes=1) == 1
    assert made == ["first", "second", "third", "second"]
    assert json.loads((tmp_path / "third.json").read_text()) == RESULT


def test_nothing_starts_when_the_time_is_up(made, tmp_path):
    assert record(ALL, tmp_path, minutes=0) == os.EX_TEMPFAIL
    assert made == []


def test_the_status_is_0_when_nothing_is_missing(made, tmp_path):
    assert record([ALL[0], ALL[2]], tmp_path, minutes=1) == 0
    assert not list(tmp_path.glob("*.new"))


def test_the_page_has_every_table(made, tmp_path):
    record(ALL, tmp_path, minutes=1)
    assert (tmp_path / "tables.md").read_text() == page(tmp_path)
    (tmp_path / "cifar10_hybrid.json").write_text('{"comparisons": []}')
    text = page(tmp_path)
    assert "1 x a device, jax 0.10.2, commit abc" in text and "- as README has it" in text
    assert "[cifar10_hybrid.json](cifar10_hybrid.json)" in text
    assert all(f"\n\n## {x.name}\n\n" in text for x in (ALL[0], ALL[2]))


def test_a_table_in_markdown():
    assert markdown_table(RESULT["rows"]).splitlines() == [
        "| batch_size | ratio |",
        "| --- | --- |",
        "| 128 | 1.17 |",
        "| 640 |  |",
    ]


@pytest.mark.slow
def test_the_last_line_of_a_command_is_its_result():
    """A real command, and one that refuses its flags."""
    digits = "--config=configs/digits.py:increasing_batch"
    result = recording._measure(Measurement("plan", ("plan", digits, "--json")), 300)
    assert result["num_updates"] > 100
    with pytest.raises(ChildProcessError, match="exit status 2"):
        recording._measure(Measurement("plan", ("plan", "--no")), 300)


@pytest.mark.parametrize("status", ["finished", "unfinished: epoch 1.0 of 9, loss not finite"])
def test_a_training_counts_if_all_of_its_runs_finished(status, tmp_path):
    """A sweep ends with status 0 also where a run diverged, and that passed for measured."""
    run = {"path": "runs/0", "finished": status == "finished", "status": status}
    (tmp_path / "report.json").write_text(json.dumps({"runs": [run]}))
    training = Measurement("a", ("__main__",), tmp_path / "report.json")
    if status == "finished":
        assert recording._measure(training, 300) == {"runs": [run]}
    else:
        with pytest.raises(ChildProcessError, match="runs/0: unfinished: .*, loss not finite"):
            recording._measure(training, 300)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_under_way_with_nothing_recorded(number, tmp_path):
    """It used to run on, beside the next start."""
    program = (
        "import pathlib; from experiments.recording import Measurement, record; "
        "slopes = Measurement('slopes', ('bench_slopes', '--rows=100000', '--json')); "
        f"raise SystemExit(record([slopes], pathlib.Path({str(tmp_path)!r}), 9))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=recording.ROOT) as process:
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().split()):
            time.sleep(0.1)
        while "jaxlib" not in pathlib.Path(f"/proc/{child[0]}/maps").read_text():
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=recording.END_SECONDS) == os.EX_TEMPFAIL
    assert not pathlib.Path(f"/proc/{child[0]}").exists()
    assert not list(tmp_path.iterdir())


def test_the_most_telling_measurement_is_first():
    found = gpu_tables.measurements(pathlib.Path("runs/a_gpu"))
    names = [x.name for x in found]
    assert names[:2] == ["bench_growth", "cifar10_increasing_batch"]
    assert len(names) == len(set(names)) == 11
    assert not any(re.search(r"=/\w", part) for x in found for part in x.arguments)
    assert found[1].result == recording.ROOT / "runs/a_gpu/increasing_batch/report/report.json"


def test_recorded_commands_name_no_folder_of_one_machine():
    for path in recording.RESULTS.rglob("*.json"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"[\"=]/\w", line), f"{path.name}: {line.strip()[:200]}"


def test_the_commit_is_that_of_this_code_only(monkeypatch, tmp_path):
    """A virtual environment inside another repository has no commit, though git finds one."""
    installed = tmp_path / "venv" / "environment.py"
    installed.parent.mkdir()
    installed.write_text("")
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(installed))

    def git(*arguments: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert environment.commit() is None
    git("add", "other.py")
    git("commit", "-m", "another project")
    assert environment.commit() is None
    git("add", "venv")
    git("commit", "-m", "this project")
    assert re.fullmatch("[0-9a-f]{10}", environment.commit() or "")
