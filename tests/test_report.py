"""From run folders to facts: statistics in closed form, what is compared, bad input."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_folders import (
    BATCH_FACTORS,
    KINDS,
    LANGUAGE,
    make_plan,
    make_run,
    make_runs,
    metric,
    paper_of,
)
from scipy import stats

from batchgrow import report
from batchgrow.plan import Recipe, curves, decay, follow, grow, hybrid
from batchgrow.report import runs, wording
from batchgrow.report.facts import _segments, same_noise_scale


@pytest.fixture(scope="module", params=KINDS, ids=[kind.task for kind in KINDS])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def found(tmp_path_factory, kind):
    """The facts of three plans x two seeds and a third seed cut off in mid-row."""
    folder = tmp_path_factory.mktemp("report")
    made = make_runs(folder, kind=kind)
    made.append(make_run(folder / "cut", "increasing_batch", 2, kind=kind, finished=False))
    return report.facts(made, paper_of(kind))


def command(*arguments):
    line = [sys.executable, "-m", "experiments.report", *map(str, arguments)]
    root = pathlib.Path(__file__).parents[1]
    return subprocess.run(line, capture_output=True, text=True, cwd=root, check=False)


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    make_run(tmp_path / "run", "hybrid", 0)
    done = command(tmp_path / "run", f"--out={tmp_path}/run/config.json/report")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: cannot write to {tmp_path}/run/config.json/report/index.html (Not a directory); "
        "take another --out\n"
    )


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
    assert labels == {"decaying_lr", "hybrid (momentum)", "hybrid (adam)", "increasing_batch"}
    settings = [c["setting"] for c in report.facts([*made, adam])["comparisons"]]
    assert settings == [
        f"digits, classification, conv_net, {name}, 12 epochs" for name in ("momentum", "adam")
    ]


def test_long_labels_keep_what_tells_them_apart(tmp_path):
    """Labels that differ at their ends only."""
    variant = "increasing_batch"
    made = [make_run(tmp_path / str(seed), variant, seed) for seed in range(2)]
    names = [f"{'a very long name ' * 8}{ending}" for ending in ("early", "late")]
    made = [
        dataclasses.replace(run, config=run.config | {"variant": name})
        for run, name in zip(made, names, strict=True)
    ]
    table = report.text(report.facts(made)).split("\n\n")[2]
    assert all(len(line) <= 100 for line in table.splitlines())
    assert "early" in table and "late" in table


def test_a_run_that_repeats_another_is_left_out_and_named(tmp_path, caplog):
    first = make_run(tmp_path / "a", "hybrid", 0, final=0.9)
    again = make_run(tmp_path / "b", "hybrid", 0, final=0.8)
    other = make_run(tmp_path / "c", "hybrid", 1, final=0.9)
    (plan,) = report.facts([again, other, first])["comparisons"][0]["plans"]
    assert (plan["test"]["n"], plan["test"]["mean"]) == (2, pytest.approx(0.9))
    assert caplog.messages == [
        f"{again.path} is left out: {first.path} has the same config and seed"
    ]


def test_namesakes_of_another_experiment_are_told_apart_by_its_name(tmp_path):
    made = [make_run(tmp_path / kind.task, "hybrid", 0, kind=kind) for kind in KINDS]
    assert [group.label for group in runs.group_by_plan(made)] == [
        "hybrid (characters)",
        "hybrid (digits)",
    ]


def test_a_field_that_changes_the_trajectory_splits_a_plan_and_names_it(tmp_path):
    made = [make_run(tmp_path / str(seed), "hybrid", seed) for seed in range(2)]
    config = tmp_path / "1" / "config.json"
    changed = json.loads(config.read_text()) | {"run": {"num_devices": 8}}
    changed["data"]["seed"] = 7  # another field than the run's own seed
    config.write_text(json.dumps(changed))
    labels = {g.label for g in runs.group_by_plan([made[0], report.read_run(made[1].path)])}
    assert labels == {"hybrid", "hybrid (data.seed=7)"}


def test_no_limit_is_another_plan_than_the_default_limit(tmp_path):
    made = [make_run(tmp_path / str(limit), "hybrid", 0) for limit in (None, math.inf)]
    for run, limit in zip(made, (None, math.inf), strict=True):
        path = pathlib.Path(run.path) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": {"max": limit}}))
    labels = {g.label for g in runs.group_by_plan([report.read_run(run.path) for run in made])}
    assert labels == {"hybrid (max=None)", "hybrid (max=inf)"}


def test_a_label_says_which_batch_size_was_trained(tmp_path):
    made = [make_run(tmp_path / str(size), "hybrid", 0) for size in (20, 8)]
    config = tmp_path / "8" / "config.json"
    changed = json.loads(config.read_text()) | {"ghost_batch_size": 20}
    changed["recipe"]["batch_size"] = 8
    config.write_text(json.dumps(changed))
    labels = {g.label for g in runs.group_by_plan([made[0], report.read_run(made[1].path)])}
    assert labels == {
        "hybrid (batch_size=20)",
        "hybrid (batch_size=8 rounded to 20, ghost_batch_size=20)",
    }


def test_headline_states_the_finding_from_the_numbers(found, kind):
    (comparison,) = found["comparisons"]
    medians = [plan["test"]["median"] for plan in comparison["plans"]]
    apart = max(medians) - min(medians)
    by = f"{100 * apart:.1f} points" if kind.metric["percent"] else f"{apart:.2g}"
    ratio = make_plan("decaying_lr")["num_updates"] / make_plan("increasing_batch")["num_updates"]
    assert comparison["headline"].startswith(
        f"Same noise scale: three plans end within {by} of each other in test {kind.shown} ("
    )
    assert f"increasing_batch needs {ratio:.1f}x fewer updates than" in comparison["headline"]
    fewer = {plan["variant"]: plan["times_fewer_updates"] for plan in comparison["plans"]}
    assert fewer["decaying_lr"] == 1 and fewer["increasing_batch"] == pytest.approx(ratio)


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


def test_noise_that_is_not_known_yet_or_0_can_be_read(tmp_path):
    """A plan that decides late has none at first; the first update of a warm-up has a rate of 0."""
    rising = Recipe(16, 0.9, curves.with_warmup(curves.constant(0.1), 2), 100, num_epochs=4)
    follows = follow(dataclasses.replace(rising, curve=curves.constant(0.1), num_epochs=400))
    late = follows.to_dict([follows.next((), {})])
    decayed, grown = decay(rising).to_dict(), grow(rising, initial_multiple=2).to_dict()
    assert late["noise_scale"] == [] and decayed["noise_scale"][0] == 0
    made = make_run(tmp_path / "run", "hybrid", 0)
    for plan in (late, decayed, {**decayed, "noise_scale": [-1.0]}):
        (tmp_path / "run/plan.json").write_text(json.dumps(plan))
        if plan["noise_scale"] == [-1.0]:
            with pytest.raises(ValueError, match="must be a list of numbers, 0 or more; restore"):
                report.read_run(made.path)
        else:
            found = report.facts([report.read_run(made.path)])
            assert found["comparisons"][0]["same_noise_scale"] is None
    assert same_noise_scale([decayed, grown]) is True
    assert same_noise_scale([decayed, late]) is None
    still = {**decayed, "noise_scale": [0.0] * 128}
    assert same_noise_scale([still, still]) is True and same_noise_scale([still, grown]) is False


def test_unfinished_run_is_listed_and_left_out_of_the_statistics(found):
    (cut,) = [run for run in found["runs"] if not run["finished"]]
    assert cut["status"] == "unfinished: last row at epoch 4.0 of 12, 300 of 394 updates"
    assert cut["status"] in " ".join(report.text(found).split())
    assert [plan["seeds"] for plan in found["comparisons"][0]["plans"]] == [[0, 1]] * 3


def test_text_stays_within_100_columns_whatever_the_names(tmp_path):
    made = make_runs(tmp_path, seeds=(0,))
    made[1].config["variant"] = "hybrid_" + "x" * 120
    table = report.text(report.facts(made)).split("\n\n")[2].splitlines()
    firsts = [line for line in table if len(line) > 60]  # A long label goes on in further lines.
    assert [line.split()[0][:6] for line in firsts] == ["plan", "decayi", "hybrid", "increa"]
    assert max(map(len, table)) <= 100


@pytest.mark.slow
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


def test_equal_differences_have_no_interval(tmp_path):
    """Of small test sets: the same one example more for both seeds proves nothing."""
    finals = {"decaying_lr": (353 / 360, 354 / 360), "hybrid": (354 / 360, 355 / 360)}
    made = [
        make_run(tmp_path / f"{variant}{seed}", variant, seed, final=final)
        for variant, of_seeds in finals.items()
        for seed, final in enumerate(of_seeds)
    ]
    (row,) = report.facts(made)["comparisons"][0]["paired"]
    assert row["verdict"] == "+0.28 points in each of 2 common seeds: no interval"


def test_values_have_four_digits_and_deviations_two():
    def deviation(mean, stdev):
        return wording.mean_and_deviation({"mean": mean, "stdev": stdev}, LANGUAGE.metric)

    shown = [wording.value(number, LANGUAGE.metric) for number in (0.03125, 1.0, 24.128, 1234.5)]
    assert shown == ["0.03125", "1", "24.13", "1,234"]
    assert wording.value(None, LANGUAGE.metric) == wording.EMPTY
    assert deviation(1.61234, 0.00061) == "1.61234 ± 0.00061"
    assert deviation(1234.5, 21.4) == "1,234 ± 21"
    assert (deviation(24.1, 0.0), deviation(24.1, None)) == ("24.1 ± 0", "24.1")


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
        (
            lambda folder: set_field(folder / "task.json", "metrics", []),
            "it must be a list that is not empty",
        ),
        (lambda folder: set_field(folder / "task.json", "metrics", [1]), "metrics.0.: not a JSON"),
        (
            lambda folder: set_field(folder / "task.json", "metrics", [metric("loss", "down")]),
            "'better' is 'down'; it must be 'lower' or 'higher'",
        ),
        (lambda folder: (folder / "plan.json").unlink(), "plan.json: cannot be read"),
        (
            lambda folder: set_field(folder / "plan.json", "num_epochs", "12"),
            "'num_epochs' is '12'; it must be a number above 0",
        ),
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


def test_report_replaces_a_report_and_nothing_else(tmp_path):
    run = make_run(tmp_path / "run", "hybrid", 0)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="is a run folder; take another folder"):
        report.write_report([run], str(tmp_path / "run"))
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"index.html is not a report's"):
        report.write_report([run], str(out))
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert (out / "index.html").read_text() == "mine"
    (out / "index.html").unlink()
    for _ in range(2):
        report.write_report([run], str(out))
    assert "mine" not in (out / "index.html").read_text()


def test_percentages_of_the_paper_are_fractions(tmp_path):
    run = make_run(tmp_path / "run", "hybrid", 0)
    with pytest.raises(ValueError, match="give a fraction"):
        report.facts([run], {"hybrid": {"test_accuracy": 94.3}})
    run = make_run(tmp_path / "other", "hybrid", 0, kind=LANGUAGE)
    (row,) = report.facts([run], {"hybrid": {LANGUAGE.test: 94.3}})["comparisons"][0]["paper"]
    assert row["paper_test"] == 94.3


def test_the_pieces_of_a_plan_that_follows_are_one_segment():
    """Of several seeds, only pieces of the same size count."""

    def piece(size, start, end):
        return {
            "batch_size": size,
            "num_updates": (end - start) // size,
            "start_examples": start,
            "end_examples": end,
            "learning_rate_end": 0.1 * end,
        }

    def run(*segments):
        found = [{"batch_size": size, "examples_per_second": rate} for size, rate in segments]
        return SimpleNamespace(summary={"segments": found})

    group: Any = SimpleNamespace(
        runs=[SimpleNamespace(config={"plan": {"name": "follow"}})],
        plan={
            "num_examples": 100,
            "tokens_per_example": 7,
            "segments": [piece(10, 0, 40), piece(10, 40, 100), piece(20, 100, 200)],
        },
        finished=[run((10, 1.0), (10, 3.0), (20, 5.0)), run((10, 1.0), (20, 9.0), (20, 7.0))],
    )
    first, second = _segments(group)
    assert (first["num_updates"], first["tokens"], first["end_epoch"]) == (10, 700, 1.0)
    assert first["learning_rate_end"] == 10.0 and first["start_examples"] == 0
    assert (first["examples_per_second"], second["examples_per_second"]) == (2.0, 6.0)
