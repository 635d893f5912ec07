"""The laboratory: every experiment's grid, the engine, and what is recorded."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from batchgrow.config import check_layouts, make_experiment, make_plan
from batchgrow.data.prepared import is_prepared
from batchgrow.report import Run
from batchgrow.train import train
from configs import digits, mnist
from experiments.lab import (
    EXPERIMENTS,
    cifar10_plans,
    diffusion,
    optimal_batch,
    page,
    setups,
    study,
)

ROOT = pathlib.Path(__file__).parents[1]
SEEDS = {name: study.find_study(name).seeds for name in EXPERIMENTS}
needs_mnist = pytest.mark.skipif(
    not is_prepared("mnist"), reason="mnist is not prepared; set TFDS_DATA_DIR"
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_has_a_plan_and_a_folder_of_its_own(name):
    found = study.find_study(name)
    cells = list(study.cells(found, "runs", seeds=1))
    assert len({cell.folder for cell in cells}) == len(cells) == len(found.arms) > 1
    for cell in cells:
        plan = make_plan(cell.config, cell.config.data.num_train_examples)
        check_layouts(plan, 1, cell.config)
        assert plan.num_updates > 4


def test_an_unknown_experiment_names_the_known():
    with pytest.raises(ValueError, match="no experiment 'growth'; choose update_time"):
        study.find_study("growth")


def a_run(**final: float) -> Run:
    summary = {"final": final, "wall_seconds": 1.0, "versions": {}, "devices": {}, "commit": "c"}
    return Run("", {}, {}, {"metrics": []}, (), summary)


def test_exponents_of_the_best_batch_in_closed_form():
    """A loss with its minimum at a batch proportional to lr N / (1 - m)."""
    trials = []
    for arm in optimal_batch.arms():
        label = arm.labels
        best = 0.032 * label["rate"] * label["examples"] / (1 - label["momentum"])
        for seed in range(3):
            loss = 0.1 + 0.01 * math.log2(label["batch"] / best) ** 2 + 1e-6 * seed
            run = a_run(test_loss=loss, test_accuracy=1 - loss)
            trials.append(study.Trial(label, seed, run, {}))
    verdict = optimal_batch.judge(trials)
    for number in verdict.numbers:
        assert number.ours == pytest.approx(1, abs=1e-6)
        assert number.low == pytest.approx(1, abs=1e-3) == number.high
    # A run that diverged is left out of its point.
    without = [
        trial._replace(run=None) if trial.labels["batch"] == 1 else trial for trial in trials
    ]
    assert optimal_batch.judge(without).numbers[0].ours == pytest.approx(1, abs=1e-6)


def a_trained_run(plan, rng) -> Run:
    """A run of this plan as the experiments read it, with made-up numbers."""
    rows = []
    for index, segment in enumerate(plan.segments):
        before = sum(other.num_updates for other in plan.segments[:index])
        for t in sorted({1, 2, 4, 10, 50, segment.num_updates} & {*range(segment.num_updates + 1)}):
            rows.append(
                {
                    "segment": index,
                    "updates": before + t,
                    "epoch": (segment.start_examples + t * segment.batch_size) / 50_000,
                    "train_loss": 1.0 + rng.random(),
                    "test_accuracy": 0.5 + 0.1 * rng.random(),
                    "batch_size": segment.batch_size,
                    "examples_per_second": 1000.0 * segment.batch_size,
                    "distance": 1 + math.log(before + t) + 0.01 * rng.random(),
                    "step_norm": 1.0 + rng.random(),
                    "gradient_noise_scale": 100.0 + rng.random(),
                }
            )
    final = {f"{part}_{name}": 0.9 for part in ("train", "test") for name in ("loss", "accuracy")}
    made = a_run(**{name: value + 0.01 * rng.random() for name, value in final.items()})
    return dataclasses.replace(made, rows=tuple(rows))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_comes_to_a_verdict(name, tmp_path):
    """Also where a seed of one arm has diverged."""
    found, rng = study.find_study(name), np.random.default_rng(0)
    measured = {"sharpness": {"0.001": 2.0, "0.0005": 1.0}, "eigenvalues": [3.0]}
    measured |= {"auc": 0.9, "anova": 0.8}
    measured |= {"test_probabilities": [[0.9, 0.1], [0.4, 0.6]], "test_labels": [0, 0]}
    measured |= {"newest": 0.5, "probabilities": 0.5, "weights": 0.4}
    trials = []
    for cell in study.cells(found, "runs", seeds=2):
        plan = make_plan(cell.config, cell.config.data.num_train_examples)
        trials.append(study.Trial(cell.arm.labels, cell.seed, a_trained_run(plan, rng), measured))
    for chosen in (trials, [trials[0]._replace(run=None, measured={}), *trials[1:]]):
        result = study.record(name, found, chosen, "command")
        assert all(chart["lines"] for chart in result["charts"])
        assert "nan" not in result["finding"] and result["finding"].endswith(".")
        assert "unknown" not in result["finding"] or name == "optimal_batch"
        (tmp_path / f"{name}.json").write_text(json.dumps(result, allow_nan=False))
    assert found.claim in page.page(tmp_path, SEEDS)


def of_arms(name: str, accuracy: float = 0.9) -> list[study.Trial]:
    """Three seeds of each arm, all equally good."""
    run = a_run(test_loss=1.0, train_loss=1.0, test_accuracy=accuracy, train_accuracy=accuracy)
    arms = study.find_study(name).arms
    return [study.Trial(arm.labels, seed, run, {}) for seed in range(3) for arm in arms]


def test_a_size_with_a_diverged_seed_breaks_the_series():
    """A mean over the seeds that finished would hide that one diverged."""
    trials = of_arms("constant_noise")
    judge = study.find_study("constant_noise").judge
    assert "no rate is too large" in judge(trials).finding

    def without(rate):
        first = next(t for t in trials if t.labels["rate"] == rate)
        return judge([t._replace(run=None) if t is first else t for t in trials])

    assert "up to a rate of 0.2, 8 times as large; at 0.4 runs diverge." in without(0.4).finding
    assert without(0.025).finding == "Already at 0.025 runs diverge, so no rates can be compared."

    trials = of_arms("fixed_rate")
    judge = study.find_study("fixed_rate").judge
    assert "up to batch 2048" in judge(trials).finding
    lost = next(t for t in trials if t.labels == {"batch": 512, "rate": "scaled"})
    trials[trials.index(lost)] = lost._replace(run=None)
    assert "up to batch 256" in judge(trials).finding


@pytest.mark.parametrize("num_runs", [1, 2, 3])
def test_no_mean_of_more_runs_than_there_are(num_runs):
    """Their accuracy used to be 0."""
    measured = {"test_probabilities": [[0.9, 0.1]], "test_labels": [0]}
    measured |= {"newest": 1.0, "probabilities": 1.0, "weights": 1.0}
    run = dataclasses.replace(a_run(), rows=({"updates": 100},))
    found = study.find_study("ensembles")
    verdict = found.judge(
        [study.Trial(arm.labels, s, run, measured) for arm in found.arms for s in range(num_runs)]
    )
    means = {number.what: number.ours for number in verdict.numbers if "the mean of" in number.what}
    assert len(means) == 3 * (num_runs - 1) and set(means.values()) <= {1.0}
    assert [len(line["points"]) for line in verdict.charts[0]["lines"]] == [num_runs] * 3
    words = ("Two growing runs", "three take", "mean of three")
    said = [word in verdict.finding for word in words]
    assert said == [num_runs >= 2, num_runs >= 3, num_runs >= 3]


def test_no_best_batch_at_the_edge():
    assert optimal_batch.best_batch({1: 0.1, 2: 0.2, 4: 0.3}) is None
    assert optimal_batch.best_batch({1: 0.3, 2: 0.2, 4: 0.3}) == pytest.approx(2)
    assert optimal_batch.best_batch({}) is None


def test_fits_of_the_diffusion_tell_a_logarithm_from_a_power():
    updates = np.array([10, 20, 50, 100, 200, 500, 1000])
    of_log, of_power, _ = diffusion.fits(updates, 2 + 3 * np.log(updates))
    assert of_log == pytest.approx(1) and of_power < 0.999
    of_log, of_power, power = diffusion.fits(updates, 2 * updates**0.4)
    assert of_power == pytest.approx(1) and of_log < 0.99 and power == pytest.approx(0.4)


def a_study() -> study.Study:
    """Two batches of the digits."""

    def config():
        made = digits.get_config()
        made.noise.share = None
        setups.only_at_the_end(made)
        made.recipe.num_epochs = 0.3
        made.recipe.boundaries_epochs = ()
        made.model.channels = 2
        made.run.num_devices = 1
        return made

    def judge(trials):
        losses = {batch: study.values_of(trials, "test_loss", batch=batch) for batch in (16, 32)}
        return study.Verdict(
            [study.paired("difference", losses[16], losses[32], source="0.1", sure="read")],
            [
                study.chart(
                    "Loss", "batch", "test_loss", [study.line(trials, "a", "batch", "test_loss")]
                )
            ],
            "A finding.",
        )

    arms = [study.Arm({"batch": batch}, {"recipe.batch_size": batch}) for batch in (16, 32)]
    return study.Study(
        "A claim.", "a source", config, arms, 2, judge, lambda folder: {"it": folder}
    )


@pytest.mark.slow
def test_from_a_study_to_its_record_and_page(tmp_path):
    found = a_study()
    cells = list(study.cells(found, str(tmp_path / "runs")))
    for cell in cells[:-1]:  # The last one is as one that diverged.
        train(make_experiment(cell.config), cell.folder)
    trials = study.trials_of(found, cells)
    assert [trial.run is None for trial in trials] == [False, False, False, True]
    assert trials[1].measured == {"it": f"{tmp_path}/runs/batch=32/0"}
    result = study.record("a", found, trials, "python -m experiments.lab a")
    assert (result["num_runs"], result["num_diverged"], result["seeds"]) == (3, 1, [0, 1])
    assert result["numbers"][0]["n"] == 1
    assert [point["n"] for point in result["charts"][0]["lines"][0]["points"]] == [2, 1]
    assert result["arms"][1]["changes"] == {"recipe.batch_size": 32}
    study.write(result, epath.Path(tmp_path / "results"))
    assert json.loads((tmp_path / "results/a.json").read_text())["claim"] == "A claim."
    assert (tmp_path / "results/a.png").stat().st_size > 10_000
    (tmp_path / "results/a.json").rename(tmp_path / "results/fixed_rate.json")
    text = page.page(tmp_path / "results", SEEDS)
    assert "**Finding.** A finding." in text and "| difference | 0.1 |" in text
    assert "`python -m experiments.lab a --seeds=2`: 4 runs, 1 of which diverged, 2 seeds" in text
    assert "`python -m experiments.lab a`:" in page.page(tmp_path / "results", {"fixed_rate": 2})


def test_the_page_is_made_from_the_recorded_results():
    recorded = ROOT / "experiments/results/lab"
    assert (ROOT / "docs/laboratory.md").read_text() == page.page(recorded, SEEDS)
    for path in recorded.glob("*.json"):
        result = json.loads(path.read_text())
        assert path.stem in EXPERIMENTS
        assert result["commits"] and result["versions"]["jax"] and result["seeds"]
        assert (ROOT / f"docs/laboratory/{path.stem}.png").exists()


def test_the_plans_of_cifar10_have_the_best_rate_that_was_tried():
    """By the record; and for each optimizer both a lower and a higher rate were worse."""
    recorded = json.loads((ROOT / "experiments/results/lab/cifar10_plans.json").read_text())
    ours = {number["what"]: number["ours"] for number in recorded["numbers"]}
    for optimizer, rates in cifar10_plans.TRIED.items():
        of_rate = {
            rate: ours[f"test accuracy, {optimizer} at {rate:g}, 4 epochs"] for rate in rates
        }
        assert max(of_rate, key=lambda rate: of_rate[rate]) == cifar10_plans.RATES[optimizer]
        assert min(rates) < cifar10_plans.RATES[optimizer] < max(rates)


def test_a_claim_is_listed_with_what_was_found(tmp_path):
    """The first sentence of the finding; a number's decimal point does not end it."""
    finding = "It falls by 0.5 points, not as claimed. The rest is noise."
    (tmp_path / "a.json").write_text(json.dumps({"finding": finding}))
    assert page.listing({"a": "It rises.", "b": "It falls."}, tmp_path).splitlines() == [
        *("a", "  claim: It rises.", "  found: It falls by 0.5 points, not as claimed."),
        *("b", "  claim: It falls.", "  found: not recorded"),
    ]


@pytest.mark.slow
def test_the_command_lists_and_refuses_in_one_line():
    def command(*flags):
        line = [sys.executable, "-m", "experiments.lab", *flags]
        env = os.environ | {"JAX_PLATFORMS": "nonexistent"}
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=env)

    listed = command()
    assert listed.returncode == 0, listed.stderr
    names = [row for row in listed.stdout.splitlines() if not row.startswith(" ")]
    assert names == list(EXPERIMENTS)
    wrong = command("growth", "--workdir=x")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("error: no experiment 'growth'")


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("variant", mnist.VARIANTS)
def test_mnist_learns_from_a_part_of_it(variant, tmp_path):
    config = mnist.get_config(variant)
    setups.part_of_mnist(config, 2560)
    config.recipe.num_epochs = 2.0
    config.model.features = (32,)
    config.run.tensorboard = config.run.progress = False
    train(make_experiment(config), str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"]["test_accuracy"] > 0.6


@needs_mnist
def test_mnist_trains_with_a_batch_of_one(tmp_path):
    config = setups.small_mnist(50, features=(8,))
    config.recipe.batch_size = 1
    config.recipe.num_epochs = 1.0
    config.recipe.learning_rate = 0.001
    config.run.num_devices = 1
    config.run.tensorboard = config.run.progress = False
    train(make_experiment(config), str(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text())["num_updates"] == 50
