"""README tells the truth: its example runs, its first command keeps its promises."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.lab import cifar10_plans

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
    assert plans
    for plan in plans:
        accuracy = plan["test"]["median"]
        updates, fewer = plan["num_updates"], plan["times_fewer_updates"]
        seconds = plan["wall_seconds"]
        row = (
            f"| `{plan['plan']}` | {updates:,} | {fewer:.1f}x | {100 * accuracy:.2f} % "
            f"| {seconds:.1f} s |"
        )
        assert row in README


def test_table_of_small_plans_is_recorded():
    path = pathlib.Path(__file__).parents[1] / "experiments/results/cifar10_small.json"
    plans = json.loads(path.read_text())["comparisons"][0]["plans"]
    assert plans
    for plan in plans:
        name, test = plan["variant"].removesuffix(",small"), plan["test"]
        median, mean, deviation = (100 * test[key] for key in ("median", "mean", "stdev"))
        row = (
            f"| `{name}` | {plan['num_updates']:,} | {median:.2f} % "
            f"| {mean:.2f} ± {deviation:.2f} |"
        )
        assert row in README


def test_table_of_the_papers_batches_is_recorded():
    """Those of 50 epochs and, beside them, those of 20."""
    results = pathlib.Path(__file__).parents[1] / "experiments/results"
    paths = (results / "lab/cifar10_plans.json", results / "cifar10_tenth.json")
    ours, shorter = (
        {n["what"]: n["ours"] for n in json.loads(path.read_text())["numbers"]} for path in paths
    )
    for plan in cifar10_plans.PLANS:
        cells = [f"`{plan}`", f"{ours[f'updates, {plan}']:,.0f}"]
        for numbers in (ours, shorter):
            for optimizer in ("momentum", "adam"):
                accuracy = numbers.get(f"test accuracy, {plan}, {optimizer}")
                cells.append(f"{100 * accuracy:.2f} %" if accuracy else "")
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in README


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
