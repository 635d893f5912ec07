"""A grid of configs, and the report's figure of a column against a field."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import make_run

from batchgrow import report
from batchgrow.experiment import NonFiniteLoss, Outcome
from batchgrow.report import drawing, runs, swept
from batchgrow.run.folder import FolderError
from experiments import grid, launch

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = str(ROOT / "configs/digits.py")


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("recipe.learning_rate", "0.05,0.1, 0.2", ["0.05", "0.1", "0.2"]),
        ("recipe.learning_rate", "0.1", ["0.1"]),
        ("optimizer.name", "momentum,adam", ["momentum", "adam"]),
        ("noise.share", "None,0.01", ["None", "0.01"]),
        ("recipe.boundaries_epochs", "3,6", ["3,6"]),
        ("recipe.boundaries_epochs", "(3,6)", ["(3,6)"]),
        ("recipe.boundaries_epochs", "(3,6),(4,8),()", ["(3,6)", "(4,8)", "()"]),
        ("task.mean", "(73.0,)", ["(73.0,)"]),
        ("data.train_split", "train[:10],train[10:]", ["train[:10]", "train[10:]"]),
        ("data.columns", "img,label", ["img,label"]),
        ("data.columns", "'img,label','img,coarse'", ["img,label", "img,coarse"]),
        ("plan.batches", "\"0:8, 10:16\",'0:8'", ["0:8, 10:16", "0:8"]),
        ("data.name", "", [""]),
    ],
)
def test_commas_separate_values_but_not_the_parts_of_one(name, text, values):
    assert grid.values_of(name, text) == values


def test_a_tuple_that_is_not_declared_stays_whole():
    assert grid.values_of("model.features", "8,8", default=(4,)) == ["8,8"]
    assert grid.values_of("model.features", "(8,8),(4,)", default=(4,)) == ["(8,8)", "(4,)"]
    assert grid.values_of("model.channels", "8,4", default=2) == ["8", "4"]


@pytest.mark.parametrize("text", ["0.1,,0.2", "0.1,", ",0.1"])
def test_an_empty_value_is_refused(text):
    with pytest.raises(ValueError, match=r"--config.recipe.factor=.*: a value is empty"):
        grid.values_of("recipe.factor", text)


def test_the_grid_is_the_product_with_seeds_outermost():
    arguments = [
        "--config.recipe.learning_rate=0.1,0.2",
        "--config.recipe.boundaries_epochs=(3,6),(4,)",
        "--config.recipe.num_epochs=7",
    ]
    files = [f"{DIGITS}:{variant}" for variant in ("decaying_lr", "hybrid")]
    cells = list(grid.cells(files, arguments, (0, 5)))
    assert len(cells) == 2 * 2 * 2 * 2
    made = [(c.config.seed, c.config.variant, c.config.recipe.learning_rate) for c in cells]
    assert made[::2][:4] == [
        (0, "decaying_lr", 0.1),
        (0, "decaying_lr", 0.2),
        (0, "hybrid", 0.1),
        (0, "hybrid", 0.2),
    ]
    assert {c.config.seed for c in cells[:8]} == {0} and {c.config.seed for c in cells[8:]} == {5}
    assert [c.config.recipe.boundaries_epochs for c in cells[:2]] == [(3, 6), (4,)]
    assert {c.config.recipe.num_epochs for c in cells} == {7.0}
    assert len({c.folder for c in cells}) == len(cells)
    assert (
        cells[9].folder
        == ("decaying_lr/recipe.learning_rate=0.1/recipe.boundaries_epochs=(4.0,)/5")
        or cells[9].folder == "decaying_lr/recipe.learning_rate=0.1/recipe.boundaries_epochs=(4,)/5"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.recipe.learning_rate=0.1,fast"], "recipe.learning_rate.*fast"),
        (["--config.recipe.learning_rat=0.1,0.2"], "learning_rat: no such config field"),
        (["--config.recipe.batch_size=16,16"], "two cells of the grid are .*batch_size=16/0"),
        (["--config.seed=1", "--config.seed=2"], "--config.seed is given twice"),
        (["--config.data.name=npz:/a/b,digits"], "'data.name=npz:/a/b' cannot name the folder"),
    ],
)
def test_a_wrong_grid_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(grid.cells([DIGITS], arguments, None if "seed" in arguments[0] else (0,)))
    assert "\n" not in str(caught.value)


def with_fields(run, **recipe):
    """A run with other fields in `recipe`."""
    config = run.config | {"recipe": run.config["recipe"] | recipe}
    return dataclasses.replace(run, config=config)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two rates by three batches, three seeds; the last metric is 0.9 + rate + seed / 100."""
    folder = tmp_path_factory.mktemp("sweep")
    return [
        with_fields(
            make_run(
                folder / f"{rate}_{batch}_{seed}", "hybrid", seed, final=0.5 + rate + seed / 100
            ),
            learning_rate=rate,
            batch_size=batch,
        )
        for rate in (0.1, 0.2)
        for batch in (8, 64, 512)
        for seed in range(3)
    ]


def test_points_are_means_with_their_t_interval(made):
    found = swept.swept(runs.group_by_plan(made), "recipe.batch_size", "test_accuracy")
    assert [line["label"] for line in found["lines"]] == [
        "hybrid (learning_rate=0.1)",
        "hybrid (learning_rate=0.2)",
    ]
    for line, rate in zip(found["lines"], (0.1, 0.2), strict=True):
        assert [point["x"] for point in line["points"]] == [8, 64, 512]
        for point in line["points"]:
            assert point["n"] == 3
            assert point["mean"] == pytest.approx(0.5 + rate + 0.01)
            half = 4.302652729911275 * 0.01 / 3**0.5  # t of 2 degrees of freedom
            assert point["high"] - point["mean"] == pytest.approx(half)
            assert point["mean"] - point["low"] == pytest.approx(half)


def test_the_widest_field_is_the_axis_by_default(made):
    found = swept.swept(runs.group_by_plan(made))
    assert (found["x"], found["y"], found["percent"]) == (
        "recipe.batch_size",
        "test_accuracy",
        True,
    )


def test_plans_of_several_variants_are_no_sweep(tmp_path):
    made = [make_run(tmp_path / variant, variant, 0) for variant in ("hybrid", "decaying_lr")]
    assert report.facts(made)["sweep"] is None


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("recipe.batch_sise", None, "--x=recipe.batch_sise: .*nearest is 'recipe.batch_size'"),
        ("recipe.batch_size", "test_los", "--y=test_los: choose .*test_loss"),
    ],
)
def test_wrong_axes_are_refused(made, x, y, message):
    with pytest.raises(ValueError, match=message):
        swept.swept(runs.group_by_plan(made), x, y)


def test_many_plans_are_compared_with_the_best(made):
    paired = runs.paired_differences(runs.group_by_plan(made))
    assert len(paired) == 15  # of six plans, every pair
    more = made + [with_fields(run, momentum=0.5) for run in made]
    groups = runs.group_by_plan(more)
    paired = runs.paired_differences(groups)
    assert len(paired) == len(groups) - 1
    best = {first.label for first, _, _ in paired}
    assert len(best) == 1 and "0.2" in best.pop()
    assert all(difference.mean <= 1e-9 for _, _, difference in paired)


@pytest.mark.slow
def test_the_page_shows_the_sweep(made, tmp_path):
    found = report.write_report(made, str(tmp_path), x="recipe.batch_size", y="test_loss")
    assert found["sweep"]["y"] == "test_loss"
    page = (tmp_path / "index.html").read_text()
    assert "Test loss against recipe.batch_size" in page
    assert (tmp_path / "figures/sweep.png").stat().st_size > 10_000


def test_axes_are_checked_without_runs(made):
    configs = [run.config for run in made]
    assert swept.check_axes(configs, ["test_loss"], None, "test_loss") == "recipe.batch_size"
    with pytest.raises(ValueError, match="--y=test_los: choose test_loss, num_updates"):
        swept.check_axes(configs, ["test_loss"], None, "test_los")
    with pytest.raises(ValueError, match="--y=test_loss: no number differs between runs"):
        swept.check_axes(configs[:1], ["test_loss"], None, "test_loss")


def sweep(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.sweep", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_the_command_trains_the_grid_once(tmp_path):
    flags = (
        *("--config=configs/digits.py", "--seeds=2", f"--workdir={tmp_path}"),
        *("--config.recipe.learning_rate=0.1,0.2", "--config.recipe.num_epochs=0.2"),
        *("--config.recipe.boundaries_epochs=()", "--config.model.channels=2"),
        *("--config.run.tensorboard=False", "--x=recipe.learning_rate", "--y=train_loss"),
    )
    done = sweep(*flags)
    assert done.returncode == 0, done.stderr
    cells = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("config.json"))
    assert cells == [
        f"decaying_lr/recipe.learning_rate={rate}/{seed}" for rate in (0.1, 0.2) for seed in (0, 1)
    ]
    found = json.loads((tmp_path / "report/report.json").read_text())["sweep"]
    assert [point["x"] for point in found["lines"][0]["points"]] == [0.1, 0.2]
    for rate in (0.1, 0.2):
        for seed in (0, 1):
            cell = f"digits:decaying_lr/recipe.learning_rate={rate}/{seed}: "
            assert sum(line.startswith(cell) for line in done.stderr.splitlines()) > 1, done.stderr
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("summary.json"))]
    assert sweep(*flags).returncode == 0
    assert written == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("summary.json"))]


@pytest.mark.parametrize("names", ["abc", [f"method {index}" for index in range(10)]])
def test_names_of_an_axis_do_not_touch(names):
    points = [{"x": name, "n": 3, "mean": 0.5, "low": 0.4, "high": 0.6} for name in names]
    panel = swept.panel(
        {"x": "x", "y": "y", "percent": True, "lines": [{"label": "", "points": points}]}
    )
    figure = drawing.draw(panel)
    figure.draw_without_rendering()
    [axes] = figure.axes
    axis = axes.yaxis if len(names) > 3 else axes.xaxis
    assert [label.get_text() for label in axis.get_ticklabels()] == list(names)
    boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))


def test_no_cell_is_below_another_run(tmp_path):
    """A report does not look for runs in a run folder."""
    experiment: Any = SimpleNamespace(name="x")
    runs = tmp_path / "runs"
    made = make_run(runs / "hybrid/0", "hybrid", 0).path
    launch.check_grid(str(runs), [(experiment, made), (experiment, f"{runs}/hybrid/1")])
    (tmp_path / "config.json").touch()  # above the workdir, where no report looks
    launch.check_grid(str(runs), [(experiment, made)])
    for workdir, folder in [(runs / "hybrid/0", "grow/1"), (runs, "hybrid/0/1")]:
        with pytest.raises(FolderError, match=f"^{made} is a run folder itself .*; take another"):
            launch.check_grid(str(workdir), [(experiment, f"{workdir}/{folder}")])


def test_a_cell_that_diverges_is_a_result_and_one_that_stops_ends_the_grid(monkeypatch):
    ends = [NonFiniteLoss("the loss is nan"), Outcome.FINISHED, Outcome.GROWTH, Outcome.FINISHED]
    seen: list[str] = []

    def train(experiment, folder, **_):
        seen.append(folder)
        end = ends[len(seen) - 1]
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(launch, "train", train)
    monkeypatch.setattr(launch, "OVERRIDE", SimpleNamespace(value=False))
    experiment: Any = SimpleNamespace(name="x")
    assert launch.run_cells([(experiment, folder) for folder in "abcd"]) == 76
    assert seen == ["a", "b", "c"]
