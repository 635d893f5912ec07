"""The arms of experiments.schedules, and a run of two of them."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from run_folders import make_run

from batchgrow.config import make_plan
from batchgrow.report import Run, group_by_plan
from configs import digits, shakespeare
from experiments.arms import ARMS, arm_of, as_text, table

FIXED = tuple(arm for arm in ARMS if arm != "follow")
ROOT = pathlib.Path(__file__).parents[1]


def plans_of(config):
    num_examples = config.data.num_train_examples
    return {arm: make_plan(arm_of(config, arm, 8, 0.75), num_examples) for arm in FIXED}


def test_all_arms_see_the_same_examples() -> None:
    for config in (digits.get_config(), shakespeare.get_config()):
        plans = plans_of(config)
        ends = [plan.end_examples for plan in plans.values()]
        largest = 8 * config.recipe.batch_size
        assert max(ends) - min(ends) <= largest
        assert plans["recipe"].batch_sizes() == (config.recipe.batch_size,)
        for arm in FIXED[1:]:
            assert max(plans[arm].batch_sizes()) <= largest
            assert plans[arm].num_updates < plans["recipe"].num_updates
        follow = make_plan(arm_of(config, "follow", 8, 0.75), config.data.num_train_examples)
        assert follow.batch_sizes() == tuple(config.recipe.batch_size << k for k in range(4))


def test_arms_differ_where_they_should() -> None:
    config = shakespeare.get_config()
    plans = plans_of(config)
    rates = {arm: plan.at(plan.end_examples - 1).learning_rate for arm, plan in plans.items()}
    assert rates["large_linear"] == pytest.approx(8**0.5 * rates["large_sqrt"])
    assert rates["ramp"] == pytest.approx(rates["recipe"], rel=0.01)
    assert plans["smith"].segments == plans["seesaw"].segments
    assert plans["ramp"].batch_sizes() == (12, 24, 48, 96)
    config.plan.momentum, config.plan.momentum_rise_epochs = 0.98, 2.0  # of another plan
    twice = make_plan(arm_of(config, "ramp", 2, 0.75), config.data.num_train_examples)
    assert twice.batch_sizes() == (12, 24)
    assert plans["late_switch"].batch_sizes() == (12, 96)
    start = plans["late_switch"].segments[1].nominal_start_examples
    assert start == pytest.approx(0.75 * 24_000, abs=2)
    follows = [arm_of(config, a, 8, 0.75).optimizer.betas_follow_batch for a in ARMS]
    assert [arm for arm, follow in zip(ARMS, follows, strict=True) if follow] == ["seesaw_betas"]
    assert config.variant == "decaying_lr"  # the config itself is left alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", 8, 0.5), "unknown arm 'x'"),
        (("ramp", 6, 0.5), "power of 2"),
        (("ramp", 8, 1), "0.*1"),
    ],
)
def test_wrong_arms_are_refused(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arm_of(digits.get_config(), *arguments)


@pytest.mark.parametrize("name", ["schedules_language", "schedules_language_small"])
def test_the_tables_of_the_docs_are_the_recorded_ones(name: str) -> None:
    recorded = ROOT / f"experiments/results/{name}.json"
    page = (ROOT / "docs/schedules.md").read_text()
    for row in json.loads(recorded.read_text())["rows"]:
        test = row["test"]
        loss = f"{test['mean']:.3f} ± {test['stdev']:.3f}"
        assert f"| `{row['arm']}` | {row['updates']:,} | {loss} |" in page


def test_arms_that_diverged_stay_in_the_table(tmp_path: pathlib.Path) -> None:
    """One without a finished seed has a row; with some, the pairs say how many they are."""

    def run(arm: str, seed: int, finished: bool) -> Run:
        made = make_run(tmp_path / arm / str(seed), "hybrid", seed, finished=finished)
        return dataclasses.replace(made, config=made.config | {"variant": arm})

    ends = {"recipe": (1, 1, 1), "smith": (1, 1, 0), "large_linear": (0, 0, 0)}
    runs = [run(arm, seed, bool(end)) for arm in ends for seed, end in enumerate(ends[arm])]
    rows = table(group_by_plan(runs), {})
    assert [(row["arm"], row["n"], row["num_diverged"]) for row in rows] == [
        ("recipe", 3, 0),
        ("smith", 2, 1),
        ("large_linear", 0, 3),
    ]
    assert rows[2]["test"] is None and rows[2]["paired"] is None
    _, _, recipe, smith, large = as_text(rows).splitlines()
    assert "diverged" not in recipe
    assert "2, 1 diverged" in smith and "(n = 2)" in smith
    assert "0, 3 diverged" in large
    assert "n = " not in as_text(rows[:1])


@pytest.mark.slow
def test_two_arms_are_trained_tabled_and_not_trained_again(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "experiments.schedules", "--config=configs/digits.py"]
    command += ["--config.recipe.num_epochs=1.0", "--config.recipe.boundaries_epochs=(0.5,)"]
    command += ["--config.run.tensorboard=False", "--config.run.progress=False"]
    command += ["--arms=recipe,smith", "--seeds=2", "--multiple=4", "--seconds_per_example=0.001"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run() -> str:
        done = subprocess.run(
            [*command, f"--workdir={tmp_path}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    rows = json.loads((tmp_path / "schedules.json").read_text())
    assert [row["arm"] for row in rows] == ["recipe", "smith"]
    assert rows[1]["paired"]["n"] == 2 and rows[1]["paired"]["low"] is not None
    assert rows[1]["updates"] < rows[0]["updates"]
    assert rows[0]["predicted_seconds"] is not None
    assert "95 % interval" in first
    rowsfile = tmp_path / "recipe/0/metrics.jsonl"
    before = rowsfile.stat().st_mtime_ns
    assert run() == first
    assert rowsfile.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_report_without_a_row_is_one_line(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "experiments.schedules", "--config=configs/digits.py"]
    command += ["--config.recipe.num_epochs=1.0", "--config.recipe.boundaries_epochs=()"]
    command += ["--config.recipe.learning_rate=1e30", "--config.run.progress=False"]
    command += ["--arms=recipe", "--seeds=1", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nno report: every run diverged before its first row\n")
    assert "0, 1 diverged" in done.stdout
