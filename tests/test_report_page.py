"""The report's page and its figures, for two kinds of task."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
from run_folders import CLASSIFICATION, KINDS, LANGUAGE, make_run, make_runs, paper_of

from batchgrow import report
from batchgrow.plan import Recipe, curves, decay, grow
from batchgrow.report import drawing, figures, plan_figures, runs


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
            assert re.search(rf">{test['mean']:.4f}\d* ± 0\.00", page)
    assert "unfinished: last row at epoch 4.0 of 12, 300 of 394 updates" in page
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
    assert not any(colour in svgs for colour in drawing.CSS_VARIABLES)
    assert all(variable in svgs for variable in drawing.CSS_VARIABLES.values())
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
    (axes,) = drawing.draw(panel).axes
    losses = np.array([[row["train_loss"] for row in run.rows] for run in groups[0].runs])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(losses, axis=0))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(losses.min()) and band.max() == pytest.approx(losses.max())


def test_axes_are_those_of_the_metric(tmp_path, kind):
    groups = runs.group_by_plan(make_runs(tmp_path, kind=kind))
    drawn = {
        panel.name: panel for panel in figures.panels(groups, figures.lines_of_plans([groups]))
    }
    (axes,) = drawing.draw(drawn["test_epochs"]).axes
    assert axes.get_ylabel() == f"test {kind.shown}"
    assert axes.get_yscale() == ("log" if kind is LANGUAGE else "linear")
    assert drawn["test_epochs"].is_log is (kind is LANGUAGE)
    assert axes.yaxis.get_major_formatter()(0.5) == ("50%" if kind is CLASSIFICATION else "0.5")
    (axes,) = drawing.draw(drawn["train_loss_updates"]).axes
    assert (axes.get_ylabel(), axes.get_yscale()) == ("training loss", "log")


@pytest.mark.parametrize("values", [(1.0, 1.9), (-0.5, 3.0), (0.0, 3.0)])
def test_a_loss_that_is_negative_or_hardly_moves_has_a_linear_axis(tmp_path, values):
    run = make_run(tmp_path / "run", "hybrid", 0, kind=LANGUAGE)
    tests = itertools.cycle(values)
    rows = tuple(row | {LANGUAGE.test: next(tests)} for row in run.rows)
    groups = runs.group_by_plan([dataclasses.replace(run, rows=rows)])
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[4]
    assert drawing.draw(panel).axes[0].get_yscale() == "linear"


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
        for colour in drawing.PALETTE:
            light, dark = sorted([luminance(paper), luminance(colour)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3.0, (colour, paper)


def test_a_smooth_learning_rate_is_drawn_as_it_is_planned(tmp_path):
    run = make_run(tmp_path / "run", "decaying_lr", 0)
    first = run.plan["segments"][0]
    first["learning_rates"] = [[0, 1e-9], [1500, 0.1], [5980, 0.05]]  # the corners of a warm-up
    groups = runs.group_by_plan([run])
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[0]
    (axes,) = drawing.draw(panel).axes
    (line,) = axes.lines[:1]
    assert line.get_xdata()[:4] == pytest.approx([0, 1, 5980 / 1500, 4])
    assert line.get_ydata()[:4] == pytest.approx([1e-9, 0.1, 0.05, 0.05])
    # The start of the warm-up does not set the scale.
    assert axes.get_ylim()[0] == pytest.approx(0.1 / 1000)


def test_a_single_evaluation_is_a_dot_and_the_legend_is_beside_the_curves(tmp_path):
    run = make_run(tmp_path / "run", "decaying_lr", 0)
    groups = runs.group_by_plan([dataclasses.replace(run, rows=run.rows[-1:])])
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[4]
    figure = drawing.draw(panel)
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert figure.axes[0].get_legend() is None
    (legend,) = figure.legends
    figure.canvas.draw()
    below = figure.axes[0].get_window_extent().y1
    assert legend.get_window_extent().y0 >= below


def test_ticks_of_near_values_do_not_overlap(tmp_path):
    made = make_runs(tmp_path, seeds=(0,))
    made[0].plan["segments"][0]["batch_size"] = 21  # beside 20 on an axis that ends at 320
    groups = runs.group_by_plan(made)
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[1]
    (axes,) = drawing.draw(panel).axes
    assert list(axes.get_yticks()) == [20, 80, 320]


def test_plans_are_drawn_from_their_points():
    recipe = Recipe(10, 0.9, curves.step(0.1, (1, 2), 0.1), num_examples=100, num_epochs=3)
    plans = {"decay": decay(recipe).points(), "grow": grow(recipe, max_batch_size=50).points()}
    drawn = {panel.name: panel for panel in plan_figures.plan_panels(plans)}
    assert list(drawn) == ["learning_rate", "batch_size", "noise_scale", "update"]
    values = {
        name: [set(line.get_ydata()) for line in drawing.draw(panel).axes[0].lines]
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
    batch_size = plan_figures.plan_panels({"grow": plan.points()})[1]
    (line,) = drawing.draw(batch_size).axes[0].lines
    assert len(line.get_ydata()) < 2 * plan_figures.MAX_POINTS < plan.num_updates
    last = plan.segments[-1]
    assert list(line.get_ydata()).count(last.batch_size) == last.num_updates + 1  # and its end
    assert line.get_xdata()[-1] == pytest.approx(plan.end_examples / 1000)


def test_a_loss_that_is_not_finite_is_said_and_keeps_the_json_valid(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "png", lambda _: b"")
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
    monkeypatch.setattr(drawing, "png", lambda _: b"")  # the SVGs are on the page
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


def test_segments_show_tokens_and_a_momentum_that_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "png", lambda _: b"")
    run = make_run(tmp_path / "run", "hybrid", 0)
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    plan["tokens_per_example"] = 1000
    plan["segments"][0] |= {"momentum_start": 0.95, "momentum_end": 0.85}
    (tmp_path / "run/plan.json").write_text(json.dumps(plan))
    report.write_report([report.read_run(run.path)], str(tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text()
    examples = plan["segments"][0]["end_examples"]
    assert ">Tokens</th>" in page and f"{1000 * examples:,}" in page
    assert "0.95 → 0.85" in page
