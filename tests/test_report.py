"""From run folders to the report: statistics in closed form, the page, the figures, bad input."""

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from batchgrow import Recipe, curves, decay, grow, report
from batchgrow.report import figures, runs

NUM_EXAMPLES, NUM_EPOCHS, FACTOR = 1500, 12, 4
STEPS = (0, 4, 8, 12)
BATCH_FACTORS = {"decaying_lr": (1, 1, 1), "hybrid": (1, 4, 4), "increasing_batch": (1, 4, 16)}
FINAL = {"decaying_lr": 0.970, "hybrid": 0.972, "increasing_batch": 0.968}
PAPER = {
    "decaying_lr": {"test_accuracy": 0.943, "updates": 80000, "source": "section 5.2"},
    "increased_momentum": {"test_accuracy": 0.933, "command": "python -m experiments.fill_me"},
}


def make_plan(variant):
    phases = []
    for number, batch_factor in enumerate(BATCH_FACTORS[variant]):
        start, end = STEPS[number] * NUM_EXAMPLES, STEPS[number + 1] * NUM_EXAMPLES
        batch = 20 * batch_factor
        rate = 0.1 * batch_factor / FACTOR**number
        noise = rate * NUM_EXAMPLES / (batch * 0.1)
        phases.append(
            {
                "start_examples": start,
                "end_examples": end,
                "num_updates": round((end - start) / batch),
                "global_batch_size": batch,
                "learning_rate_start": rate,
                "learning_rate_end": rate,
                "momentum": 0.9,
                "noise_scale_start": noise,
                "noise_scale_end": noise,
            }
        )
    return {
        "num_examples": NUM_EXAMPLES,
        "num_epochs": NUM_EPOCHS,
        "num_updates": sum(phase["num_updates"] for phase in phases),
        "phases": phases,
    }


def make_rows(plan, final, rng):
    """Two rows an epoch; the loss falls with the epochs and steps down where the noise does."""
    rows, updates = [], 0.0
    for half in range(1, 2 * NUM_EPOCHS + 1):
        epoch = half / 2
        number = sum(epoch > step for step in STEPS[1:-1])
        phase = plan["phases"][number]
        updates += NUM_EXAMPLES / 2 / phase["global_batch_size"]
        loss = (
            (0.02 + 2.2 * math.exp(-epoch / 1.5)) / 2.5**number * (1 + 0.1 * rng.standard_normal())
        )
        row = {
            "examples_seen": round(epoch * NUM_EXAMPLES),
            "updates": round(updates),
            "epoch": epoch,
            "phase": number,
            "global_batch_size": phase["global_batch_size"],
            "learning_rate": phase["learning_rate_start"],
            "momentum": phase["momentum"],
            "noise_scale": phase["noise_scale_start"],
            "train_loss": loss,
        }
        if half % 2 == 0:
            noise = 0.004 * rng.standard_normal() * (1 - epoch / NUM_EPOCHS)
            accuracy = final - 0.5 * math.exp(-epoch) - 0.02 * (2 - number) + noise
            row |= {"test_loss": loss + 0.1, "test_accuracy": accuracy}
        rows.append(row)
    rows[-1]["test_accuracy"] = final
    return rows


def make_run(
    folder, variant, seed, *, final=None, finished=True, optimizer="momentum", share_of_peak=None
):
    """A run folder as `train` leaves it; an unfinished one stops in mid-row after a third."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    plan = make_plan(variant)
    rng = np.random.default_rng([seed, len(variant)])
    final = FINAL[variant] + 0.002 * rng.standard_normal() if final is None else final
    rows = make_rows(plan, final, rng)
    config = {
        "name": "digits",
        "variant": variant,
        "seed": seed,
        "optimizer": {"name": optimizer, "weight_decay": 5e-4},
        "model": {"name": "conv_net", "num_classes": 10},
        "data": {"name": "digits", "num_train_examples": NUM_EXAMPLES},
        "run": {"data_dir": str(folder)},
        "recipe": {"learning_rate": 0.1, "batch_size": 20},
    }
    lines = [json.dumps(row) for row in rows]
    if not finished:
        lines = lines[:8] + [lines[8][:40]]
    seconds = {"compile": 4.0, "input": 0.5, "step": 12.0 + seed, "eval": 1.5, "checkpoint": 0.75}
    summary = {
        "final": {"test_loss": 0.1, "test_accuracy": final, "train_loss": rows[-1]["train_loss"]},
        "num_updates": plan["num_updates"],
        "wall_seconds": 20.0 + seed,
        "seconds": seconds,
        "phases": [
            {"images_per_second": 9000.0 + 1000 * seed, "share_of_peak": share_of_peak}
            for _ in plan["phases"]
        ],
        "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "batchgrow": "0.1.0"},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "commit": "abc1234",
        "command": f"python -m experiments.digits --seed={seed}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + ("\n" if finished else ""))
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return report.read_run(str(folder))


def make_runs(folder, seeds=(0, 1)):
    return [
        make_run(folder / f"{variant}_{seed}", variant, seed)
        for variant in BATCH_FACTORS
        for seed in seeds
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(out folder, facts) of three plans x two seeds and a third seed cut off in mid-row."""
    folder = tmp_path_factory.mktemp("report")
    found = make_runs(folder)
    found.append(make_run(folder / "cut", "increasing_batch", 2, finished=False))
    return folder / "out", report.write_report(found, str(folder / "out"), PAPER)


def command(*arguments):
    line = [sys.executable, "-m", "experiments.report", *map(str, arguments)]
    root = pathlib.Path(__file__).parents[1]
    return subprocess.run(line, capture_output=True, text=True, cwd=root)


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
    assert settings == [f"digits, conv_net, {name}, 12 epochs" for name in ("momentum", "adam")]


def test_a_field_that_changes_the_trajectory_splits_a_plan_and_names_it(tmp_path):
    made = [make_run(tmp_path / str(seed), "hybrid", seed) for seed in range(2)]
    config = tmp_path / "1" / "config.json"
    changed = json.loads(config.read_text()) | {"dtype": "bfloat16", "run": {"num_devices": 8}}
    config.write_text(json.dumps(changed))
    labels = {g.label for g in runs.group_by_plan([made[0], report.read_run(made[1].path)])}
    assert labels == {"hybrid", "hybrid dtype=bfloat16"}


def test_headline_states_the_finding_from_the_numbers(written):
    (comparison,) = written[1]["comparisons"]
    medians = [plan["test_accuracy"]["median"] for plan in comparison["plans"]]
    apart = 100 * (max(medians) - min(medians))
    ratio = make_plan("decaying_lr")["num_updates"] / make_plan("increasing_batch")["num_updates"]
    assert comparison["headline"].startswith(
        f"Same noise scale: three plans within {apart:.1f} points of test accuracy"
    )
    assert f"increasing_batch needs {ratio:.1f}x fewer updates than" in comparison["headline"]


def test_headline_does_not_claim_a_noise_scale_or_an_accuracy_that_differs(tmp_path):
    made = [
        make_run(tmp_path / "a", "decaying_lr", 0),
        make_run(tmp_path / "b", "hybrid", 0, final=0.9),
    ]
    noisier = [
        phase | {f"noise_scale_{end}": 2 * phase[f"noise_scale_{end}"] for end in ("start", "end")}
        for phase in made[1].plan["phases"]
    ]
    louder = dataclasses.replace(made[1], plan=made[1].plan | {"phases": noisier})
    headline = report.facts([made[0], louder])["comparisons"][0]["headline"]
    assert headline.startswith("Different noise scales: two plans ")
    assert "points of test accuracy apart" in headline


def test_page_has_every_plan_with_its_numbers(written):
    page = (written[0] / "index.html").read_text()
    for plan in written[1]["comparisons"][0]["plans"]:
        accuracy = plan["test_accuracy"]
        assert f'<th scope="row" class="text">{plan["plan"]}</th>' in page
        assert f"<td>{plan['num_updates']:,}</td>" in page
        assert f"<td>{100 * accuracy['median']:.2f}%</td>" in page
        assert f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['stdev']:.2f}" in page
    for fact in ("abc1234", "jax 0.10.2", "1 × cpu", "experiments.digits --seed=1", "12 s (65%)"):
        assert fact in page


def test_page_shows_the_papers_number_and_what_nobody_has_run(written):
    rows = {row["plan"]: row for row in written[1]["comparisons"][0]["paper"]}
    assert rows["decaying_lr"]["test_accuracy"]["n"] == 2
    assert rows["increased_momentum"]["test_accuracy"] is None
    page = (written[0] / "index.html").read_text()
    for said in ("94.3%", "80,000", "section 5.2", "not run: python -m experiments.fill_me"):
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
    assert {"overview", "learning_rate", "batch_size", "train_loss_updates", "time"} <= set(names)
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
    run.plan["phases"][0]["learning_rate_end"] = 0.05
    groups = runs.group_by_plan([run])
    panel = figures.panels(groups, figures.lines_of_plans([groups]))[0]
    drawn = figures.draw(panel).axes[0].lines[0].get_ydata()
    assert list(drawn) == [row["learning_rate"] for row in run.rows]


def test_plans_are_drawn_from_their_points():
    recipe = Recipe(10, 0.9, curves.step(0.1, (1, 2), 0.1), num_examples=100, num_epochs=3)
    plans = {"decay": decay(recipe).points(), "grow": grow(recipe, max_batch_size=50).points()}
    drawn = {panel.name: panel for panel in figures.plan_panels(plans)}
    assert list(drawn) == ["learning_rate", "batch_size", "noise_scale", "updates"]
    values = {
        name: [set(line.get_ydata()) for line in figures.draw(panel).axes[0].lines]
        for name, panel in drawn.items()
    }
    assert values["batch_size"] == [{10}, {10, 50}]
    assert [max(updates) for updates in values["updates"]] == [29, 13]
    by_decay, by_growth = map(sorted, values["noise_scale"])
    assert by_decay == pytest.approx(by_growth)
    assert len(by_decay) == 3


def test_long_plans_are_thinned_by_epochs_and_keep_their_last_updates():
    recipe = Recipe(1, 0.9, curves.cosine(0.1, 10), num_examples=1000, num_epochs=10)
    plan = grow(recipe, max_batch_size=500)
    batch_size = figures.plan_panels({"grow": plan.points()})[1]
    (line,) = figures.draw(batch_size).axes[0].lines
    assert len(line.get_ydata()) < 2 * figures.MAX_POINTS < plan.num_updates
    last = plan.phases[-1]
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
    assert "two plans at 99.0% test accuracy (one seed each); hybrid needs 2.0x fewer" in headline


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no run folder here"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "field 'name' is missing"),
        (lambda folder: (folder / "plan.json").unlink(), "plan.json: cannot be read"),
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


def test_paper_accuracies_are_fractions(tmp_path):
    run = make_run(tmp_path / "run", "hybrid", 0)
    with pytest.raises(ValueError, match="give a fraction"):
        report.facts([run], {"hybrid": {"test_accuracy": 94.3}})
