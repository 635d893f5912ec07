"""From run folders to the report: statistics in closed form, the page, the figures, bad input."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from batchgrow import report
from batchgrow.plan import Recipe, curves, decay, grow, hybrid
from batchgrow.report import figures, runs, wording
from batchgrow.report.facts import same_noise_scale

NUM_EXAMPLES, NUM_EPOCHS, FACTOR = 1500, 12, 4
STEPS = (0, 4, 8, 12)
BATCH_FACTORS = {"decaying_lr": (1, 1, 1), "hybrid": (1, 4, 4), "increasing_batch": (1, 4, 16)}
NUM_SAMPLES = 60  # of the noise scale


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task: what its run folders hold, and how its numbers are shown."""

    experiment: str
    task: str
    model: str
    metrics: tuple[dict[str, Any], ...]
    finals: dict[str, float]
    shown: str  # the first metric's name in sentences
    paper: float
    shown_paper: str

    @property
    def metric(self):
        return self.metrics[0]

    @property
    def test(self):
        return f"test_{self.metric['name']}"

    def at(self, loss, epoch, final):
        """The first metric on the way to `final`."""
        if self.metric["percent"]:
            return final - 0.5 * math.exp(-epoch) - 0.01 * loss
        return final * math.exp(loss)


def metric(name, better, percent=False):
    return {"name": name, "better": better, "percent": percent}


CLASSIFICATION = Kind(
    experiment="digits",
    task="classification",
    model="conv_net",
    metrics=(metric("accuracy", "higher", percent=True), metric("loss", "lower")),
    finals={"decaying_lr": 0.970, "hybrid": 0.972, "increasing_batch": 0.968},
    shown="accuracy",
    paper=0.943,
    shown_paper="94.3%",
)
LANGUAGE = Kind(
    experiment="characters",
    task="language",
    model="transformer",
    metrics=(metric("bits_per_byte", "lower"), metric("loss", "lower")),
    finals={"decaying_lr": 1.620, "hybrid": 1.612, "increasing_batch": 1.631},
    shown="bits per byte",
    paper=1.58,
    shown_paper="1.58",
)
KINDS = (CLASSIFICATION, LANGUAGE)


def paper_of(kind):
    return {
        "decaying_lr": {kind.test: kind.paper, "updates": 80000, "source": "section 5.2"},
        "increased_momentum": {kind.test: kind.paper, "command": "python -m experiments.fill_me"},
    }


def make_plan(variant):
    segments = []
    for number, batch_factor in enumerate(BATCH_FACTORS[variant]):
        start, end = STEPS[number] * NUM_EXAMPLES, STEPS[number + 1] * NUM_EXAMPLES
        batch = 20 * batch_factor
        rate = 0.1 * batch_factor / FACTOR**number
        noise = rate * NUM_EXAMPLES / (batch * 0.1)
        segments.append(
            {
                "start_examples": start,
                "end_examples": end,
                "num_updates": round((end - start) / batch),
                "batch_size": batch,
                "learning_rate_start": rate,
                "learning_rate_end": rate,
                "momentum": 0.9,
                "noise_scale_start": noise,
                "noise_scale_end": noise,
            }
        )
    each = NUM_SAMPLES // len(segments)
    return {
        "num_examples": NUM_EXAMPLES,
        "num_epochs": NUM_EPOCHS,
        "num_updates": sum(segment["num_updates"] for segment in segments),
        "segments": segments,
        "noise_scale": [row["noise_scale_start"] for row in segments for _ in range(each)],
    }


def make_rows(kind, plan, final, rng):
    """Two rows an epoch; the loss falls with the epochs and steps down where the noise does."""
    rows, updates = [], 0.0
    for half in range(1, 2 * NUM_EPOCHS + 1):
        epoch = half / 2
        number = sum(epoch > step for step in STEPS[1:-1])
        segment = plan["segments"][number]
        updates += NUM_EXAMPLES / 2 / segment["batch_size"]
        loss = (
            (0.02 + 2.2 * math.exp(-epoch / 1.5)) / 2.5**number * (1 + 0.1 * rng.standard_normal())
        )
        row = {
            "examples_seen": round(epoch * NUM_EXAMPLES),
            "updates": round(updates),
            "epoch": epoch,
            "segment": number,
            "batch_size": segment["batch_size"],
            "learning_rate": segment["learning_rate_start"],
            "momentum": segment["momentum"],
            "noise_scale": segment["noise_scale_start"],
            "train_loss": loss,
        }
        if half % 2 == 0:
            row |= {"test_loss": loss + 0.1, kind.test: kind.at(loss, epoch, final)}
        rows.append(row)
    rows[-1][kind.test] = final
    return rows


def make_run(
    folder,
    variant,
    seed,
    *,
    kind=CLASSIFICATION,
    final=None,
    finished=True,
    optimizer="momentum",
    share_of_peak=None,
):
    """A run folder as `train` leaves it; an unfinished one stops in mid-row after a third."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    plan = make_plan(variant)
    rng = np.random.default_rng([seed, len(variant)])
    if final is None:
        final = kind.finals[variant] + 0.002 * rng.standard_normal()
    rows = make_rows(kind, plan, final, rng)
    config = {
        "name": kind.experiment,
        "variant": variant,
        "seed": seed,
        "optimizer": {"name": optimizer, "weight_decay": 5e-4},
        "model": {"name": kind.model},
        "task": {"name": kind.task},
        "data": {"name": "some", "num_train_examples": NUM_EXAMPLES},
        "run": {"data_dir": str(folder)},
        "recipe": {"learning_rate": 0.1, "batch_size": 20},
    }
    lines = [json.dumps(row) for row in rows]
    if not finished:
        lines = lines[:8] + [lines[8][:40]]
    seconds = {"compile": 4.0, "input": 0.5, "eval": 1.5, "checkpoint": 0.75, "step": 12.0 + seed}
    summary = {
        "final": {"test_loss": 0.1, kind.test: final, "train_loss": rows[-1]["train_loss"]},
        "num_updates": plan["num_updates"],
        "wall_seconds": 20.0 + seed,
        "seconds": seconds,
        "segments": [
            {"examples_per_second": 9000.0 + 1000 * seed, "share_of_peak": share_of_peak}
            for _ in plan["segments"]
        ],
        "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "batchgrow": "0.2.0"},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "commit": "abc1234",
        "command": f"python -m experiments.{kind.experiment} --seed={seed}",
    }
    task = {"format": 2, "name": kind.task, "metrics": kind.metrics}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + ("\n" if finished else ""))
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return report.read_run(str(folder))


def make_runs(folder, seeds=(0, 1), kind=CLASSIFICATION):
    return [
        make_run(folder / f"{variant}_{seed}", variant, seed, kind=kind)
        for variant in BATCH_FACTORS
        for seed in seeds
    ]


@pytest.fixture(scope="module", params=KINDS, ids=[kind.task for kind in KINDS])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def written(tmp_path_factory, kind):
    """(out folder, facts) of three plans x two seeds and a third seed cut off in mid-row."""
    folder = tmp_path_factory.mktemp("report")
    found = make_runs(folder, kind=kind)
    found.append(make_run(folder / "cut", "increasing_batch", 2, kind=kind, finished=False))
    return folder / "out", report.write_report(found, str(folder / "out"), paper_of(kind))


def command(*arguments):
    line = [sys.executable, "-m", "experiments.report", *map(str, arguments)]
    root = pathlib.Path(__file__).parents[1]
    return subprocess.run(line, capture_output=True, text=True, cwd=root, check=False)


def test_statistics_of_one_number_in_closed_form():
    found = runs.summarize([0.90, 0.92, 0.97])
    assert found is not None
    assert (found.n, found.median) == (3, 0.92)
    assert found.mean == pytest.approx(0.93)
    assert found.stdev == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert runs.summarize([0.5]) == runs.Statistics(n=1, median=0.5, mean=0.5, stdev=None)
    assert runs.summarize([]) is None


def test_paired_interval_is_the_paired_t_tests_over_common_seeds(tmp_path):
    first, second = [0.90, 0.93, 0.91, 0.80], [0.92, 0.94, 0.95]
    made = [
        make_run(tmp_path / f"{variant}{seed}", variant, seed, final=final)
        for variant, finals in (("decaying_lr", first), ("increasing_batch", second))
        for seed, final in enumerate(finals)
    ]
    made.append(make_run(tmp_path / "cut", "increasing_batch", 3, finished=False))
    found = runs.paired_difference(*runs.group_by_plan(made))
    expected = stats.ttest_rel(second, first[:3]).confidence_interval(0.95)
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(np.mean(np.subtract(second, first[:3])))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_common_seed_gives_no_interval_and_none_no_pair(tmp_path):
    one = [make_run(tmp_path / v, v, 0) for v in ("decaying_lr", "hybrid")]
    (row,) = report.facts(one)["comparisons"][0]["paired"]
    assert row["low"] is None and "one common seed: no interval" in row["verdict"]
    other = [one[0], make_run(tmp_path / "other", "hybrid", 1)]
    assert report.facts(other)["comparisons"][0]["paired"] == []


def test_groups_are_plans_and_labels_tell_namesakes_apart(tmp_path):
    made = make_runs(tmp_path)
    groups = runs.group_by_plan(made[::-1])
    assert [group.label for group in groups] == ["decaying_lr", "hybrid", "increasing_batch"]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1]] * 3
    adam = make_run(tmp_path / "adam", "hybrid", 0, optimizer="adam")
    labels = {group.label for group in runs.group_by_plan([*made, adam])}
    assert labels == {"decaying_lr", "hybrid momentum", "hybrid adam", "increasing_batch"}
    settings = [c["setting"] for c in report.facts([*made, adam])["comparisons"]]
    assert settings == [
        f"digits, classification, conv_net, {name}, 12 epochs" for name in ("momentum", "adam")
    ]


def test_namesakes_of_another_experiment_are_told_apart_by_its_name(tmp_path):
    made = [make_run(tmp_path / kind.task, "hybrid", 0, kind=kind) for kind in KINDS]
    assert [group.label for group in runs.group_by_plan(made)] == [
        "hybrid characters",
        "hybrid digits",
    ]


def test_a_field_that_changes_the_trajectory_splits_a_plan_and_names_it(tmp_path):
    made = [make_run(tmp_path / str(seed), "hybrid", seed) for seed in range(2)]
    config = tmp_path / "1" / "config.json"
    changed = json.loads(config.read_text()) | {"run": {"num_devices": 8}}
    changed["data"]["seed"] = 7  # another field than the run's own seed
    config.write_text(json.dumps(changed))
    labels = {g.label for g in runs.group_by_plan([made[0], report.read_run(made[1].path)])}
    assert labels == {"hybrid", "hybrid data.seed=7"}


def test_headline_states_the_finding_from_the_numbers(written, kind):
    (comparison,) = written[1]["comparisons"]
    medians = [plan["test"]["median"] for plan in comparison["plans"]]
    apart = max(medians) - min(medians)
    by = f"{100 * apart:.1f} points" if kind.metric["percent"] else f"{apart:.2g}"
    ratio = make_plan("decaying_lr")["num_updates"] / make_plan("increasing_batch")["num_updates"]
    assert comparison["headline"].startswith(
        f"Same noise scale: three plans end within {by} of each other in test {kind.shown} ("
    )
    assert f"increasing_batch needs {ratio:.1f}x fewer updates than" in comparison["headline"]


def test_headline_does_not_claim_a_noise_scale_or_a_metric_that_differs(tmp_path, kind):
    far = kind.finals["decaying_lr"] * 0.93
    made = [
        make_run(tmp_path / "a", "decaying_lr", 0, kind=kind),
        make_run(tmp_path / "b", "hybrid", 0, kind=kind, final=far),
    ]
    noisier = {"noise_scale": [2 * value for value in made[1].plan["noise_scale"]]}
    louder = dataclasses.replace(made[1], plan=made[1].plan | noisier)
    headline = report.facts([made[0], louder])["comparisons"][0]["headline"]
    assert headline.startswith("Different noise scales: two plans end ")
    assert f" apart in test {kind.shown} (" in headline


NUM_TRAIN = 50_000
NOISE_CURVES = {
    "cosine": curves.cosine(0.1, 30),
    "warm-up": curves.with_warmup(curves.cosine(0.1, 30), 2),
    "exponential": curves.exponential(0.1, 0.8),
    "steps": curves.step(0.1, (9, 18, 24), 0.2),
}


@pytest.mark.parametrize("curve", NOISE_CURVES)
@pytest.mark.parametrize("largest", [640, 5_000])
def test_plans_of_one_recipe_have_the_same_noise_scale_and_others_do_not(curve, largest):
    def recipe(batch_size=64, learning_rate=None):
        return Recipe(
            batch_size, 0.9, learning_rate or NOISE_CURVES[curve], NUM_TRAIN, num_epochs=30
        )

    def plan(made):
        return json.loads(json.dumps(made.to_dict()))

    decayed = plan(decay(recipe()))
    alike = [
        grow(recipe(), max_batch_size=largest),
        hybrid(recipe(), max_batch_size=largest),
        grow(recipe(), max_batch_size=largest, momentum=0.95, batch_multiple=48),
    ]
    others = [
        grow(recipe(), max_batch_size=largest, exponent=0.5),
        decay(recipe(batch_size=72)),
        decay(recipe(learning_rate=curves.constant(0.1))),
    ]
    for made in alike:
        assert same_noise_scale([decayed, plan(made)]) is True
    assert same_noise_scale([decayed, *map(plan, alike)]) is True
    for made in others:
        assert same_noise_scale([decayed, plan(made)]) is False
    assert same_noise_scale([decayed]) is None


def test_page_has_every_plan_with_its_numbers(written, kind):
    page = (written[0] / "index.html").read_text()
    for plan in written[1]["comparisons"][0]["plans"]:
        test, percent = plan["test"], kind.metric["percent"]
        assert f'<th scope="row" class="text">{plan["plan"]}</th>' in page
        assert f'<td data-label="Updates">{plan["num_updates"]:,}</td>' in page
        median = f"{100 * test['median']:.2f}%" if percent else f"{test['median']:.4g}"
        assert f'<td data-label="Test {kind.shown}">{median}</td>' in page
        if percent:
            assert f"{100 * test['mean']:.2f} ± {100 * test['stdev']:.2f}" in page
        else:
            assert f"{test['mean']:.4g} ± {test['stdev']:.2g}" in page
    for fact in ("abc1234", "jax 0.10.2", "1 × cpu", "--seed=1", "12 s (65%)", "Examples/s"):
        assert fact in page


def test_only_the_metrics_of_the_task_are_named(written, kind):
    """The report names a metric of another kind of task nowhere."""
    out, found = written
    said = (out / "index.html").read_text() + json.dumps(found) + report.text(found)
    assert kind.shown in said
    others = {row["name"].replace("_", " ") for other in KINDS for row in other.metrics}
    for other in others - {row["name"].replace("_", " ") for row in kind.metrics}:
        assert other not in said


def test_page_shows_the_papers_number_and_what_nobody_has_run(written, kind):
    rows = {row["plan"]: row for row in written[1]["comparisons"][0]["paper"]}
    assert rows["decaying_lr"]["test"]["n"] == 2
    assert rows["increased_momentum"]["test"] is None
    page = (written[0] / "index.html").read_text()
    for said in (
        kind.shown_paper,
        "80,000",
        "section 5.2",
        "not run: python -m experiments.fill_me",
    ):
        assert said in page


def test_unfinished_run_is_listed_and_left_out_of_the_statistics(written):
    out, found = written
    (cut,) = [run for run in found["runs"] if not run["finished"]]
    assert cut["status"] == "unfinished: epoch 4.0 of 12, 300 of 394 updates"
    assert cut["status"] in (out / "index.html").read_text()
    assert cut["status"] in " ".join(report.text(found).split())
    assert [plan["seeds"] for plan in found["comparisons"][0]["plans"]] == [[0, 1]] * 3


def test_page_is_self_contained_and_says_its_figures_in_words(written):
    page = (written[0] / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)|@import|<link|<script', page)
    alternatives = re.findall(r'<div role="img" aria-label="([^"]+)"><svg', page)
    assert len(alternatives) == page.count("<svg") == page.count("<figure>") == 7
    assert "increasing_batch 20, 80, 320" in alternatives[1]
    assert re.search(r"hybrid ends at \S+ after 450 updates", alternatives[3])
    assert re.search(r"hybrid ends at \S+ after 12 epochs", alternatives[4])
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }


def test_inlined_figures_follow_the_pages_colours(written):
    page = (written[0] / "index.html").read_text()
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not any(colour in svgs for colour in figures.CSS_VARIABLES)
    assert all(variable in svgs for variable in figures.CSS_VARIABLES.values())
    assert "prefers-color-scheme: dark" in page


def test_every_figure_exists_as_png_and_svg(written):
    names = [path.stem for path in (written[0] / "figures").glob("*.png")]
    assert sorted(names) == sorted(path.stem for path in (written[0] / "figures").glob("*.svg"))
    assert set(names) == {
        *("overview", "learning_rate", "batch_size", "time"),
        *("train_loss_epochs", "train_loss_updates", "test_epochs", "test_updates"),
    }
    assert all((written[0] / "figures" / f"{n}.png").read_bytes()[1:4] == b"PNG" for n in names)


def test_band_is_drawn_from_the_least_to_the_most_seed(tmp_path):
    groups = runs.group_by_plan(make_runs(tmp_path))
    lines = figures.lines_of_plans([groups])
    panel = {panel.name: panel for panel in figures.panels(groups, lines)}["train_loss_epochs"]
    (axes,) = figures.draw(panel).axes
    losses = np.array([[row["train_loss"] for row in run.rows] for run in groups[0].runs])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(losses, axis=0))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(losses.min()) and band.max() == pytest.approx(losses.max())


def test_axes_are_those_of_the_metric(tmp_path, kind):
    groups = runs.group_by_plan(make_runs(tmp_path, kind=kind))
    drawn = {
        panel.name: panel for panel in figures.panels(groups, figures.lines_of_plans([groups]))
    }
    (axes,) = figures.draw(drawn["test_epochs"]).axes
    assert axes.get_ylabel() == f"test {kind.shown}"
    assert axes.get_yscale() == ("log" if kind is LANGUAGE else "linear")
    assert drawn["test_epochs"].is_log is (kind is LANGUAGE)
    assert axes.yaxis.get_major_formatter()(0.5) == ("50%" if kind is CLASSIFICATION else "0.5")
    (axes,) = figures.draw(drawn["train_loss_updates"]).axes
    assert (axes.get_ylabel(), axes.get_yscale()) == ("training loss", "log")


@pytest.mark.parametrize("values", [(1.0, 1.9), (-0.5, 3.0), (0.0, 3.0)])
def test_a_loss_that_is_negative_or_hardly_moves_has_a_linear_axis(tmp_path, values):
    run = make_run(tmp_path / "run", "hybrid", 0, kind=LANGUAGE)
    tests = itertools.cycle(values)
    rows = tuple(row | {LANGUAGE.test: next(tests)} for row in run.rows)
    groups = runs.group_by_plan([dataclasses.replace(run, rows=rows)])
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[4]
    assert figures.draw(panel).axes[0].get_yscale() == "linear"


def test_a_variant_that_looks_like_mathematics_is_drawn_as_it_is(tmp_path):
    made = make_runs(tmp_path, seeds=(0,))
    made[0].config["variant"] = "$x^$"
    report.write_report(made, str(tmp_path / "out"))
    for name in ("learning_rate", "test_epochs", "time"):
        assert ">$x^$<" in (tmp_path / "out" / "figures" / f"{name}.svg").read_text()


def test_a_row_of_a_single_update_does_not_bend_the_loss_curve(tmp_path):
    run = make_run(tmp_path / "run", "hybrid", 0)
    stub = run.rows[4] | {"examples_seen": run.rows[4]["examples_seen"] + 1, "train_loss": 99.0}
    cut = dataclasses.replace(run, rows=[*run.rows[:5], stub, *run.rows[5:]])
    for one, other in zip(
        figures._curve(cut, "epoch", "train_loss"),
        figures._curve(run, "epoch", "train_loss"),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_colours_hold_three_to_one_on_light_and_dark():
    def luminance(colour):
        channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    for paper in ("#ffffff", "#171b22"):
        for colour in figures.PALETTE:
            light, dark = sorted([luminance(paper), luminance(colour)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3.0, (colour, paper)


def test_a_smooth_learning_rate_is_drawn_as_it_was_logged(tmp_path):
    run = make_run(tmp_path / "run", "decaying_lr", 0)
    run.plan["segments"][0]["learning_rate_end"] = 0.05
    groups = runs.group_by_plan([run])
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[0]
    drawn = figures.draw(panel).axes[0].lines[0].get_ydata()
    assert list(drawn) == [row["learning_rate"] for row in run.rows]


def test_plans_are_drawn_from_their_points():
    recipe = Recipe(10, 0.9, curves.step(0.1, (1, 2), 0.1), num_examples=100, num_epochs=3)
    plans = {"decay": decay(recipe).points(), "grow": grow(recipe, max_batch_size=50).points()}
    drawn = {panel.name: panel for panel in figures.plan_panels(plans)}
    assert list(drawn) == ["learning_rate", "batch_size", "noise_scale", "update"]
    values = {
        name: [set(line.get_ydata()) for line in figures.draw(panel).axes[0].lines]
        for name, panel in drawn.items()
    }
    assert values["batch_size"] == [{10}, {10, 50}]
    assert [max(updates) for updates in values["update"]] == [29, 13]
    by_decay, by_growth = map(sorted, values["noise_scale"])
    assert by_decay == pytest.approx(by_growth)
    assert len(by_decay) == 3


def test_long_plans_are_thinned_by_epochs_and_keep_their_last_updates():
    recipe = Recipe(1, 0.9, curves.cosine(0.1, 10), num_examples=1000, num_epochs=10)
    plan = grow(recipe, max_batch_size=500)
    batch_size = figures.plan_panels({"grow": plan.points()})[1]
    (line,) = figures.draw(batch_size).axes[0].lines
    assert len(line.get_ydata()) < 2 * figures.MAX_POINTS < plan.num_updates
    last = plan.segments[-1]
    assert list(line.get_ydata()).count(last.batch_size) == last.num_updates


def test_a_loss_that_is_not_finite_is_said_and_keeps_the_json_valid(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda _: b"")
    run = make_run(tmp_path / "run", "hybrid", 0, finished=False)
    metrics = tmp_path / "run" / "metrics.jsonl"
    rows = [*run.rows, run.rows[-1] | {"train_loss": math.nan}]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = report.write_report([report.read_run(run.path)], str(tmp_path / "out"))
    assert found["runs"][0]["status"].endswith("loss not finite")
    assert found["comparisons"][0]["headline"] == "No run has finished yet."
    text = (tmp_path / "out" / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == found


def test_two_settings_make_two_comparisons_on_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda _: b"")  # the SVGs are on the page
    made = [
        make_run(tmp_path / f"{variant}_{optimizer}", variant, 0, optimizer=optimizer)
        for variant in ("decaying_lr", "hybrid")
        for optimizer in ("momentum", "adam")
    ]
    found = report.write_report(made, str(tmp_path / "out"))
    assert len(found["comparisons"]) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<figure>") == 14 and page.count('href="#comparison') == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_text_stays_within_100_columns_whatever_the_names(tmp_path):
    made = make_runs(tmp_path, seeds=(0,))
    made[1].config["variant"] = "hybrid_" + "x" * 120
    table = report.text(report.facts(made)).split("\n\n")[2].splitlines()
    assert [line.split()[0][:6] for line in table] == ["plan", "decayi", "hybrid", "increa"]
    assert max(map(len, table)) <= 100


def test_command_finds_runs_below_a_folder_and_prints_the_facts(tmp_path):
    make_runs(tmp_path / "runs", seeds=(0,))
    told = command(tmp_path / "runs", f"--out={tmp_path / 'out'}", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found == json.loads((tmp_path / "out/report.json").read_text())
    assert [run["plan"] for run in found["runs"]] == list(BATCH_FACTORS)


def test_equal_accuracies_are_not_a_range(tmp_path):
    made = [make_run(tmp_path / v, v, 0, final=0.99) for v in ("decaying_lr", "hybrid")]
    headline = report.facts(made)["comparisons"][0]["headline"]
    assert "two plans end at test accuracy 99.0% (one seed each); hybrid needs 2.0x " in headline


@pytest.mark.parametrize(
    ("better", "percent", "first", "second", "said"),
    [
        ("higher", True, (0.90, 0.91, 0.92), (0.95, 0.96, 0.975), "+5.17 points"),
        ("lower", False, (24.0, 24.5, 25.0), (26.0, 26.5, 27.2), "+2.07,"),
        ("lower", False, (0.31, 0.33, 0.32), (0.21, 0.22, 0.20), "−0.11,"),
    ],
)
def test_a_verdict_has_the_metrics_unit_and_direction(
    tmp_path, better, percent, first, second, said
):
    kind = dataclasses.replace(LANGUAGE, metrics=(metric("score", better, percent),))
    made = [
        make_run(tmp_path / f"{variant}{seed}", variant, seed, kind=kind, final=final)
        for variant, finals in (("decaying_lr", first), ("hybrid", second))
        for seed, final in enumerate(finals)
    ]
    (row,) = report.facts(made)["comparisons"][0]["paired"]
    best = "hybrid" if (better == "higher") == (row["mean"] > 0) else "decaying_lr"
    assert row["verdict"].startswith(said) and row["verdict"].endswith(f": {best} is better")


def test_values_have_four_digits_and_no_powers_of_ten():
    shown = [wording.value(number, LANGUAGE.metric) for number in (0.03125, 1.0, 24.128, 1234.5)]
    assert shown == ["0.03125", "1", "24.13", "1,234"]
    assert wording.value(None, LANGUAGE.metric) == wording.EMPTY


def set_field(path, name, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no run folder here"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "field 'name' is missing"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "task.json").unlink(), "batchgrow 0.1 wrote it"),
        (lambda folder: (folder / "task.json").write_text('{"format": 3}'), "format is 3"),
        (lambda folder: set_field(folder / "task.json", "metrics", []), "'metrics' is empty"),
        (lambda folder: set_field(folder / "task.json", "metrics", [1]), "metrics.0.: not a JSON"),
        (
            lambda folder: set_field(folder / "task.json", "metrics", [metric("loss", "down")]),
            "'loss' has better='down'",
        ),
        (lambda folder: (folder / "plan.json").unlink(), "plan.json: cannot be read"),
        (lambda folder: set_field(folder / "plan.json", "num_epochs", "12"), "the wrong type .str"),
        (lambda folder: set_field(folder / "summary.json", "final", None), "'final' is missing"),
        (lambda folder: (folder / "metrics.jsonl").write_text("{}\n"), "line 1: field 'examples"),
        (lambda folder: (folder / "metrics.jsonl").write_text("{\n{}\n"), "metrics.jsonl, line 1"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "nothing logged in"),
    ],
)
def test_a_broken_run_folder_is_named(tmp_path, spoil, message):
    make_run(tmp_path / "run", "hybrid", 0)
    spoil(tmp_path / "run")
    with pytest.raises(ValueError, match=message) as error:
        report.facts([report.read_run(path) for path in report.find_runs([str(tmp_path / "run")])])
    assert "\n" not in str(error.value) and str(tmp_path / "run") in str(error.value)


def test_command_fails_with_one_line_and_status_2(tmp_path):
    told = command(tmp_path / "absent", f"--out={tmp_path / 'out'}")
    assert told.returncode == 2
    assert told.stderr.startswith("error: ") and told.stderr.count("\n") == 1
    assert "no such folder" in told.stderr
    assert not (tmp_path / "out").exists()


def test_percentages_of_the_paper_are_fractions(tmp_path):
    run = make_run(tmp_path / "run", "hybrid", 0)
    with pytest.raises(ValueError, match="give a fraction"):
        report.facts([run], {"hybrid": {"test_accuracy": 94.3}})
    run = make_run(tmp_path / "other", "hybrid", 0, kind=LANGUAGE)
    (row,) = report.facts([run], {"hybrid": {LANGUAGE.test: 94.3}})["comparisons"][0]["paper"]
    assert row["paper_test"] == 94.3
