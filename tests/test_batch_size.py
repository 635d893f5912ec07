"""How large a batch should be: the answer from times and noise, branches, and tuned trials."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from tiny import checkpoints, make_config, run_tiny

from batchgrow.config import make_experiment, make_plan
from batchgrow.plan import Recipe, Segment, curves, follow, grow
from batchgrow.plan.noise import fit_steps
from batchgrow.report import batch_figures, drawing
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.run.folder import FolderError, run_folder
from configs import digits
from experiments import advice, result_files
from experiments.trials import (
    Trials,
    branch_length,
    branch_points,
    compared,
    largest_within,
    tune,
)

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = Recipe(16, 0.9, curves.constant(0.1), num_examples=1000, num_epochs=4)
TIMES = {size: 0.002 + 0.00005 * size for size in (1, 8, 64, 512)}
NOISE = [(500, 20.0), (1000, 70.0), (2000, 140.0)]


def answered(noise=NOISE):
    plan = follow(RECIPE, max_batch_size=128, decide_every_epochs=0.5)
    return advice.answer(TIMES, noise, plan)


def test_the_answer_follows_from_times_and_noise():
    found = answered()
    assert found["idle_below"] == pytest.approx(40)  # 2 ms / 0.05 ms
    assert found["wasted_above"] == 140
    shares = [row["share_of_fastest"] for row in found["times"]]
    assert shares == pytest.approx([n / (n + 40) for n in TIMES])
    suggested, recipe = found["plans"]["suggested"], found["plans"]["recipe"]
    sizes = [size for _, size in suggested["batches"]]
    assert sizes == [16, 32, 64, 128]
    for (position, size), (_, before) in zip(suggested["batches"][1:], NOISE * 2, strict=False):
        known = [scale for seen, scale in NOISE if seen <= position]
        assert size <= known[-1], (position, before)
    for plan in (suggested, recipe):
        ends = [n for n, _ in plan["batches"]][1:] + [plan["num_examples"]]
        updates = [(end - n) // size for (n, size), end in zip(plan["batches"], ends, strict=True)]
        assert plan["num_updates"] == sum(updates)
        seconds = sum(
            count * (0.002 + 0.00005 * size)
            for count, (_, size) in zip(updates, plan["batches"], strict=True)
        )
        assert plan["hours"] * 3600 == pytest.approx(seconds)
    text = advice.as_text(found)
    assert "Below a batch of 40 the hardware is idle more than half" in text
    assert "140 at epoch 2: a larger batch wastes examples" in text
    assert advice.figure(found, RECIPE.num_examples).startswith(b"\x89PNG")


def test_the_flags_of_the_answer_make_the_plan_that_it_predicts():
    config = digits.get_config("decaying_lr")
    num_examples = config.data.num_train_examples
    recipe = make_plan(config, num_examples).recipe
    plan = follow(recipe, max_batch_size=400, batch_multiple=16, decide_every_epochs=1.0)
    noise = [(num_examples * epoch, 20.0 * epoch) for epoch in range(1, 30)]
    suggested = advice.answer(TIMES, noise, plan)["plans"]["suggested"]
    assert len(suggested["batches"]) > 3
    config.plan.max_batch_size, config.plan.initial_multiple = 32.0, 2.0  # do not go with the plan
    for flag in advice.config_flags(suggested):
        name, value = flag.removeprefix("--config.").split("=")
        section, field = name.split(".")
        config[section][field] = value.strip("'") if field in ("name", "batches") else float(value)
    made = make_plan(config, num_examples)
    by_flags = [(s.start_examples, s.batch_size) for s in made.known()]
    merged = [by_flags[0]] + [
        b for a, b in zip(by_flags, by_flags[1:], strict=False) if a[1] != b[1]
    ]
    assert [size for _, size in merged] == [size for _, size in suggested["batches"]]
    assert made.known()[-1].end_examples == pytest.approx(suggested["num_examples"], abs=400)


@pytest.mark.parametrize(
    ("noise", "words"),
    [([], "still unknown"), ([(0, 10.0)], "keep the recipe"), ([(0, 30.0)], "No batch uses both")],
)
def test_the_answer_says_what_cannot_be_had(noise, words):
    assert words in advice.as_text(answered(noise))


def test_times_that_do_not_grow_are_all_idle():
    found = advice.answer({1: 0.002, 64: 0.002}, [], follow(RECIPE, max_batch_size=128))
    assert found["idle_below"] == 64
    assert [row["share_of_fastest"] for row in found["times"]] == [1 / 64, 1]
    recipe = found["plans"]["recipe"]
    assert recipe["hours"] == pytest.approx(0.002 * recipe["num_updates"] / 3600)


def test_no_batch_is_faster_than_the_fastest():
    """The last time is below the fit, so that 128 examples are faster than its limit."""
    times = {16: 0.001, 32: 0.0021, 64: 0.0044, 128: 0.006}
    found = advice.answer(times, NOISE, follow(RECIPE, max_batch_size=128))
    assert max(row["share_of_fastest"] for row in found["times"]) == 1
    limit = 1 / found["seconds_per_example"]
    assert limit < 128 / 0.006
    assert found["idle_below"] == pytest.approx(found["seconds_per_update"] * limit)


def test_one_size_promises_no_speed():
    """An update takes time in proportion to its batch."""
    found = advice.answer({16: 0.004}, NOISE, follow(RECIPE, max_batch_size=128))
    assert (found["seconds_per_update"], found["idle_below"]) == (0, 0)
    assert found["seconds_per_example"] == pytest.approx(0.004 / 16)
    suggested, recipe = found["plans"]["suggested"], found["plans"]["recipe"]
    assert suggested["num_updates"] < recipe["num_updates"]
    assert suggested["hours"] == pytest.approx(recipe["hours"], rel=0.02)
    text = advice.as_text(found)
    assert "of the fastest" in text
    assert "An example takes 250 microseconds. Only one batch size" in text
    assert "0 ms" not in text and "idle more" not in text
    assert advice.figure(found, RECIPE.num_examples).startswith(b"\x89PNG")


def test_batch_sizes_double():
    assert advice.sizes_up_to(16, 100) == [16, 32, 64]
    assert advice.sizes_up_to(1, 8) == [1, 2, 4, 8]
    assert advice.sizes_up_to(16, 3) == [16]


def test_the_fewest_steps_are_fitted():
    sizes = [16, 64, 256, 1024]
    least, critical = fit_steps(sizes, [50 * (1 + 200 / size) for size in sizes])
    assert (least, critical) == pytest.approx((50, 200))
    with pytest.raises(ValueError, match="take a wider range"):
        fit_steps([16, 64], [100, 200])
    with pytest.raises(ValueError, match="two different ones"):
        fit_steps([16], [100])


def test_the_grid_of_rates_widens_until_the_best_is_inside():
    calls = []

    def steps_at(rate):
        calls.append(rate)
        return math.inf if rate > 4 else 100 + abs(math.log2(rate / 2))

    found = tune(steps_at, 0.25)
    assert min(found, key=lambda rate: found[rate]) == 2
    assert sorted(found) == [0.125, 0.25, 0.5, 1, 2, 4] and len(calls) == len(found)


def test_the_grid_of_rates_goes_down_while_no_rate_reaches_the_target():
    found = tune(lambda rate: 100 + math.log2(rate / 0.02) ** 2 if rate < 0.03 else math.inf, 0.25)
    best = min(found, key=lambda rate: found[rate])
    assert best == 0.25 / 16 and min(found) < best
    found = tune(lambda rate: math.inf, 1.0)
    assert sorted(found) == [2.0**k for k in range(-9, 2)]  # three, and eight more


def test_branches_are_compared_with_the_first():
    found = compared({16: [1.0, 2.0], 32: [1.1, 2.3], 64: [1.5, 2.0]}, 0.225)
    assert [row["difference"] for row in found["branches"]] == pytest.approx([0, 0.2, 0.25])
    assert [row["stdev"] for row in found["branches"]] == pytest.approx([0, 0.02**0.5, 0.125**0.5])
    assert (found["critical_batch_size"], found["is_bounded"]) == (32, True)
    assert compared({16: [1.0]}, 0.1)["branches"][0]["stdev"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_branch_that_diverges_is_a_result(loss):
    """It used to raise an AttributeError, after all branches."""
    found = compared({16: [1.0, 1.0], 32: [1.0, 1.0], 64: [loss, 1.0]}, 0.1)
    json.dumps(found, allow_nan=False)
    assert (found["critical_batch_size"], found["is_bounded"]) == (32, True)
    assert found["branches"][2] == {
        "batch_size": 64,
        "losses": [None, 1.0],
        "loss": None,
        "difference": None,
        "stdev": None,
    }
    found = compared({16: [loss, 1.0], 32: [1.0, loss]}, 0.1)
    json.dumps(found, allow_nan=False)
    assert (found["critical_batch_size"], found["is_bounded"]) == (None, False)


def test_figures_of_what_could_not_be_measured():
    """Steps without a fit, and checkpoints all of whose branches diverged."""
    for panel in (
        batch_figures.steps_panel([(16, 100.0)], None, 40.0),
        batch_figures.branch_panel({}, 0.01),
    ):
        assert drawing.png(drawing.draw(panel)).startswith(b"\x89PNG")


def test_the_largest_batch_before_the_loss_leaves():
    losses = {16: 1.0, 32: 1.005, 64: 1.02, 128: 1.0}
    assert largest_within(losses, 0.01) == 32
    assert largest_within(losses, 0.03) == 128
    assert largest_within(losses | {32: math.nan}, 0.03) == 16


def test_a_branch_has_whole_updates_in_each_quarter():
    assert branch_length(1000, [16, 32, 64]) == 768
    with pytest.raises(ValueError, match="--examples=200 are fewer than 4 updates of 64; take 256"):
        branch_length(200, [16, 32, 64])


DECAY = {"plan.name": "decay", "run.checkpoint_every_epochs": 0.1, "run.keep_checkpoints": 99}


def test_a_branch_at_the_same_batch_is_the_run_itself(tmp_path):
    """Bit for bit. And one at twice the batch has twice the rate, on the same examples."""
    run = run_tiny(tmp_path, DECAY)
    position, end = checkpoints(tmp_path)[1], max(run.states)
    experiment = make_experiment(make_config(DECAY))
    with (
        Checkpoints(
            run_folder(str(tmp_path)),
            keep=99,
            metric=experiment.task.metrics[0],
            config=dict(experiment.settings),
        ) as saved,
        Trials(experiment, piece_size=16, num_pieces=8) as trials,
    ):
        state, notes = saved.read(position, trials.engine.state)
        history = [Segment(*segment) for segment in notes["history"]]
        # The curve jumps inside of the branch, and the branch follows it.
        last = (end - position) // 32 * 32
        points = branch_points(experiment.plan, history, position, 32, last)
        assert len({point.learning_rate for point in points}) == 2
        continued = trials.advance(state, points)
        jax.tree.map(np.testing.assert_array_equal, continued.params, run.states[end].params)
        double = branch_points(experiment.plan, history, position, 64, 128)
        assert double[0].learning_rate == pytest.approx(2 * points[0].learning_rate)
        assert [p.start_examples for p in double] == [position, position + 64]
        with pytest.raises(ValueError, match="would pass the end of the recipe at 718"):
            branch_points(experiment.plan, history, position, 32, 960)
        assert trials.noise(state, position).keys() <= {"gradient_noise_scale"}
        with pytest.raises(FolderError, match="no checkpoint at 5 examples; it has"):
            saved.read(5, trials.engine.state)


def test_a_branch_has_the_momentum_of_the_plan():
    """At the batch of the run it has the run's rate too, which the momentum has lowered."""
    recipe = Recipe(16, 0.9, curves.constant(0.1), num_examples=1000, num_epochs=8)
    plan = grow(recipe, momentum=0.98)
    (segment,) = plan.known()
    [own, *_] = plan.points()
    (point, *_) = branch_points(plan, [segment], 0, own.batch_size, own.batch_size)
    assert own.momentum == 0.98 and own.batch_size == 80
    assert (point.momentum, point.learning_rate) == (0.98, pytest.approx(own.learning_rate))


def test_branches_need_examples_that_can_be_read_again():
    experiment = make_experiment(make_config())
    execution = dataclasses.replace(experiment.execution, input="workers")
    with pytest.raises(ValueError, match="'workers', which reads each example once"):
        Trials(dataclasses.replace(experiment, execution=execution), piece_size=16, num_pieces=2)


def command(name: str, *flags: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


DIGITS = "--config=configs/digits.py"
SHORT = (
    "--config.recipe.boundaries_epochs=(2.0,3.0)",
    "--config.run.num_devices=1",
    "--config.recipe.num_epochs=4.0",
    "--config.run.progress=False",
)


@pytest.mark.slow
def test_the_command_answers(tmp_path):
    flags = ("--max_batch_size=64", "--seconds=0.1", "--epochs=2", f"--out={tmp_path}/answer")
    found = json.loads(command("batch_size", DIGITS, *SHORT, *flags, "--json"))
    assert [row["batch_size"] for row in found["times"]] == [16, 32, 64]
    assert all(row["update_seconds"] > 0 for row in found["times"])
    assert found["noise"] and found["plans"]["suggested"]["num_updates"] > 0
    assert (tmp_path / "answer.png").exists()
    assert json.loads((tmp_path / "answer.json").read_text()) == found


# `batch_size` on a device that is too small for any batch.
NOTHING_FITS = """
from experiments import batch_size, launch
def updates(_):
    raise MemoryError("a batch of 16 needs too much")
batch_size.synthetic.updates = updates
launch.launch(batch_size.main)
"""


@pytest.mark.parametrize(
    ("folder", "message", "status"),
    [("file", "File exists", 2), ("new", "a batch of 16 needs too much", 1)],
)
def test_where_nothing_can_be_written_or_measured_one_line_says_so(
    tmp_path, folder, message, status
):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_FITS, DIGITS, *SHORT, f"--out={tmp_path / folder}/out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert folder == "file" or not list((tmp_path / folder).iterdir())


@pytest.mark.parametrize("ending", ["json", "png"])
def test_a_result_is_not_replaced(tmp_path, ending):
    result_files.check_writable(epath.Path(tmp_path) / "out")
    (tmp_path / f"out.{ending}").touch()
    with pytest.raises(ValueError, match=f"out.{ending} exists and is not replaced; move it, or"):
        result_files.check_writable(epath.Path(tmp_path) / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("batch_size", [DIGITS]),
        ("critical_batch", [DIGITS, "--workdir=nothing-here"]),
        ("steps_to_target", [DIGITS, "--target=0.1"]),
        ("landscape", ["nothing-here"]),
        ("bench_all", []),
    ],
)
def test_a_result_that_cannot_be_written_is_refused_first(tmp_path, name, flags):
    (tmp_path / "file").touch()
    error = command(name, *flags, f"--out={tmp_path}/file/out", status=2)
    assert error.count("\n") == 1
    assert error.startswith(f"error: cannot write to {tmp_path}/file/out")


@pytest.mark.slow
def test_branches_of_a_run(tmp_path):
    keep = ("--config.run.checkpoint_every_epochs=1.0", "--config.run.keep_checkpoints=9")
    run = (DIGITS, *SHORT, *keep, f"--workdir={tmp_path}/run")
    missing = command("critical_batch", *run, "--at=7", status=2)
    assert missing.count("\n") == 1 and "has no checkpoints" in missing
    command("train", *run)
    missing = command("critical_batch", *run, "--at=7", status=2)
    assert missing.count("\n") == 1 and "no checkpoint at 7 examples; it has" in missing
    # All checkpoints are checked before the first branch of any, which would say "done".
    first, *_, last = sorted(map(int, os.listdir(tmp_path / "run/checkpoints")))
    late = command("critical_batch", *run, f"--at={first},{last}", "--multiples=3", status=2)
    assert late.count("\n") == 1 and f"examples from {last} would pass the end" in late
    some = (
        "--multiples=3",
        "--examples=800",
        "--repeats=2",
        f"--out={tmp_path}/branches",
        "--json",
    )
    found = json.loads(command("critical_batch", *run, *some))
    assert len(found["checkpoints"]) >= 3
    for row in found["checkpoints"]:
        assert [branch["batch_size"] for branch in row["branches"]] == [16, 32, 64]
        assert row["branches"][0]["difference"] == 0
        assert row["critical_batch_size"] in (16, 32, 64)


@pytest.mark.slow
def test_steps_to_a_target(tmp_path):
    flags = ("--target=1.0", "--max_batch_size=64", "--max_epochs=3", f"--out={tmp_path}/steps")
    found = json.loads(command("steps_to_target", DIGITS, *SHORT, *flags, "--json"))
    assert [row["batch_size"] for row in found["sizes"]] == [16, 32, 64]
    for row in found["sizes"]:
        tried = [n for n in row["steps_by_rate"].values() if n]
        assert row["steps"] == min(tried) and len(row["steps_by_rate"]) >= 3


@pytest.mark.slow
def test_a_target_that_no_size_reaches_is_recorded(tmp_path):
    flags = ("--target=-1", "--max_batch_size=32", "--max_epochs=0.03", f"--out={tmp_path}/steps")
    text = command("steps_to_target", DIGITS, *SHORT, *flags)
    assert text.count("not reached") == 2 and "no fit: fewer than two batch sizes reach" in text
    found = json.loads((tmp_path / "steps.json").read_text())
    assert (found["S_min"], found["B_crit"], found["B_simple"]) == (None, None, None)
    for row in found["sizes"]:
        assert row["steps"] is None and set(row["steps_by_rate"].values()) == {None}
        assert len(row["steps_by_rate"]) == 11


# What the commands make of numbers. Their flags have equal names, so each has its own process.
NO_FIT = """
from experiments.steps_to_target import as_text, fitted
rows = [
    {"batch_size": 16, "steps": 100.0, "learning_rate": 0.1},
    {"batch_size": 64, "steps": 200.0, "learning_rate": 0.2},
]
found = {"sizes": rows, "noise_by_quarter": [30.0], **fitted(rows)}
assert found["S_min"] is found["B_crit"] is None
assert "no fit: steps [100.0, 200.0] at batch sizes [16, 64] are not of" in as_text(found)
(missed, reached) = rows[0] | {"steps": None, "learning_rate": None}, rows[1]
assert "not reached" in as_text(found | {"sizes": [missed, reached]})
rows[1]["steps"] = 50.0
found |= fitted(rows)
assert "fitted: 33.3 (1 + 32 / B)" in as_text(found), as_text(found)
"""
DIVERGED = """
from experiments.critical_batch import as_text, curves_of
from experiments.trials import compared
nan, about = float("nan"), {"learning_rate": 0.1, "examples": 64}
rows = [
    about | {"epoch": 1.001} | compared({16: [1.0], 32: [1.1], 64: [nan]}, 0.2),
    about | {"epoch": 1.002} | compared({16: [1.0], 32: [1.2], 64: [1.3]}, 0.2),
    about | {"epoch": 1.003} | compared({16: [nan], 32: [1.2], 64: [1.3]}, 0.2),
]
curves = curves_of(rows)
assert list(curves) == ["epoch 1.001", "epoch 1.002"], curves
assert [len(curve) for curve in curves.values()] == [2, 3]
lines = as_text({"checkpoints": rows}).splitlines()
assert lines[-3].split()[-2:] == ["+0.1000", "diverged"], lines
assert lines[-1].split()[-4:] == ["unknown", *["diverged"] * 3], lines
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [NO_FIT, DIVERGED])
def test_what_could_not_be_measured_is_said(program):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("batch_size", ["--epochs=-1"], "--epochs=-1.0 must be above 0"),
        ("batch_size", ["--max_batch_size=8"], "--max_batch_size=8 is below 16"),
        ("batch_size", ["--factor=-1"], "factor=-1.0 must be a finite number above 0"),
        ("critical_batch", ["--workdir=/tmp/nothing-here"], "has no checkpoints"),
        ("critical_batch", ["--workdir=x", "--multiples=0"], "--multiples=0"),
        ("steps_to_target", [], "--target is missing"),
        (
            "steps_to_target",
            ["--target=0.1", "--max_batch_size=31"],
            "--max_batch_size=31 leaves the batch size 16 alone; take 32 or more",
        ),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_line(name, flags, message):
    error = command(name, DIGITS, *flags, status=2)
    assert error.count("\n") == 1 and message in error
