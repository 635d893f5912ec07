"""README tells the truth: its example runs, its first command keeps its promises."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_python_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "noise scale" in capsys.readouterr().out


def test_table_is_the_recorded_run():
    path = pathlib.Path(__file__).parents[1] / "experiments/results/digits.json"
    plans = json.loads(path.read_text())["comparisons"][0]["plans"]
    for plan in plans:
        accuracy = plan["test"]["median"]
        updates, fewer = plan["num_updates"], plan["times_fewer_updates"]
        seconds = plan["wall_seconds"]
        row = (
            f"| `{plan['plan']}` | {updates:,} | {fewer:.1f}x | {100 * accuracy:.2f} % "
            f"| {seconds:.1f} s |"
        )
        assert row in README


@pytest.mark.slow
def test_first_command(tmp_path):
    assert "python -m experiments.digits" in README
    subprocess.run(
        [sys.executable, "-m", "experiments.digits", f"--workdir={tmp_path}/digits"],
        check=True,
        capture_output=True,
        timeout=900,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},  # as a reader has it
    )
    summaries = {
        path.parent.name: json.loads(path.read_text())
        for path in tmp_path.glob("digits/*/summary.json")
    }
    accuracy = {name: s["final"]["test_accuracy"] for name, s in summaries.items()}
    assert sorted(accuracy) == ["decaying_lr", "hybrid", "increasing_batch"]
    assert min(accuracy.values()) >= 0.96
    assert max(accuracy.values()) - min(accuracy.values()) <= 0.015
    updates = {name: s["num_updates"] for name, s in summaries.items()}
    assert updates["decaying_lr"] >= 2.5 * updates["increasing_batch"]
    page = (tmp_path / "digits/report/index.html").read_text()
    assert all(name in page for name in accuracy)
