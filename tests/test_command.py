"""`python -m batchgrow`: plans without a config file."""

import json
import re
import subprocess
import sys

import pytest

from batchgrow import Recipe, curves, decay, grow
from batchgrow.__main__ import main
from batchgrow.plan.exchange import from_text, stages, to_csv

SIZES = [
    *("--batch_size=128", "--momentum=0.9", "--num_examples=50000", "--num_epochs=200"),
    "--learning_rate=0.1",
]
WRN = [*SIZES, "--curve=step", "--boundaries_epochs=60,120,160", "--factor=0.2"]
RECIPE = Recipe(128, 0.9, curves.step(0.1, (60, 120, 160), 0.2), 50_000, 200)
PLAN = grow(RECIPE, max_batch_size=5120)


def run(capsys, *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "flag", ["--max_batch_size=300", "--initial_multiple=1", "--num_growths=1", "--ladder=2"]
)
def test_given_batches_leave_nothing_to_grow(capsys, flag) -> None:
    assert main(["plan", *WRN, "--batches=0:256 50K:512", flag]) == 2
    assert f"{flag.partition('=')[0]} does not go with --batches" in capsys.readouterr().err


def test_prints_the_plan(capsys) -> None:
    assert run(capsys, *WRN, "--max_batch_size=5120") == PLAN.table() + "\n"
    assert run(capsys, *WRN, "--num_growths=0") == decay(RECIPE).table() + "\n"
    assert "per device" in run(capsys, *WRN, "--num_devices=4")
    assert main(["plan", *WRN, "--num_devices=0"]) == 2
    assert "num_devices=0 must be a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "curve"),
    [
        (["--curve=cosine", "--final_learning_rate=0.01"], curves.cosine(0.1, 200, 0.01)),
        (["--curve=cosine", "--start_epochs=5"], curves.cosine(0.1, 200, start_epochs=5)),
        (["--curve=polynomial", "--power=2"], curves.polynomial(0.1, 200, 2)),
        (["--curve=exponential", "--decay_rate=0.98"], curves.exponential(0.1, 0.98)),
        (["--curve=wsd", "--decay_epochs=40", "--power=2"], curves.wsd(0.1, 200, 40, 2)),
        (["--curve=inverse_time", "--decay_rate=0.1"], curves.inverse_time(0.1, 0.1)),
        (["--curve=constant", "--warmup_epochs=5"], curves.with_warmup(curves.constant(0.1), 5)),
    ],
)
def test_every_curve(capsys, options: list[str], curve) -> None:
    plan = grow(Recipe(128, 0.9, curve, 50_000, 200), max_batch_size=2560)
    assert run(capsys, *SIZES, *options, "--max_batch_size=2560") == plan.table() + "\n"


def test_converts_tables(capsys, tmp_path) -> None:
    path = tmp_path / "plan.csv"
    assert run(capsys, *WRN, "--max_batch_size=5120", "--to=csv", f"--out={path}") == ""
    assert path.read_text() == to_csv(PLAN)
    text = run(capsys, f"--from={path}", "--to=json")
    assert list(from_text(text).points())[-1].learning_rate == PLAN.at(10**7).learning_rate


PLAN_OPTIONS = [
    *("--batch_size=8", "--momentum=0.9", "--num_examples=9", "--num_epochs=1", "--optimizer=adam"),
    *("--learning_rate=0.1", "--curve=constant", "--boundaries_epochs=1", "--factor=0.1"),
    *("--final_learning_rate=0", "--power=1", "--decay_rate=1", "--decay_epochs=1"),
    "--start_epochs=0",
    *(
        "--warmup_epochs=0",
        "--initial_learning_rate=0",
        "--num_growths=1",
        "--max_batch_size=300",
        "--ladder=2",
    ),
    *("--initial_multiple=1", "--plan_momentum=0.9", "--exponent=1", "--batch_multiple=1"),
    "--batches=0:8",
]


@pytest.mark.parametrize("flag", PLAN_OPTIONS)
def test_a_table_has_the_whole_plan(capsys, tmp_path, flag: str) -> None:
    """Also an option at its default is refused, rather than ignored."""
    path = tmp_path / "plan.csv"
    path.write_text(to_csv(PLAN))
    assert main(["plan", f"--from={path}", flag]) == 2
    name = flag.partition("=")[0]
    assert capsys.readouterr().err == f"batchgrow: --from has the whole plan: leave out {name}\n"


def test_every_option_of_a_plan_is_refused_beside_a_table(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = capsys.readouterr().out
    listed = re.findall(r"^  (--\w+)", text.partition("recipe (or --from)")[2], re.M)
    output = {"--to", "--tokens_per_example", "--num_devices", "--out", "--plot"}
    assert {flag.partition("=")[0] for flag in PLAN_OPTIONS} == {*listed} - output - {"--from"}


def test_a_table_knows_its_optimizer(capsys, tmp_path) -> None:
    path = tmp_path / "plan.csv"
    adamw = [*WRN, "--optimizer=adamw", "--max_batch_size=2048"]
    assert run(capsys, *adamw, "--to=csv", f"--out={path}") == ""
    found, expected = run(capsys, f"--from={path}"), run(capsys, *adamw)
    assert "diffusion" in found
    assert found.splitlines()[-1] == expected.splitlines()[-2]  # the total, without the bound


def test_sgd_has_no_momentum(capsys) -> None:
    rest = [flag for flag in WRN if not flag.startswith("--momentum")]
    recipe = Recipe(128, 0.0, RECIPE.curve, 50_000, 200, "sgd")
    text = run(capsys, *rest, "--optimizer=sgd", "--max_batch_size=5120")
    assert text == grow(recipe, max_batch_size=5120).table() + "\n"


def test_megatron(capsys) -> None:
    text = run(capsys, *WRN, "--max_batch_size=5120", "--to=megatron")
    assert text == "0:128 3000064:640 5999744:3200 7999744:5120\n"
    text = run(capsys, *WRN, "--max_batch_size=3200", "--to=megatron", "--tokens_per_example=1000")
    assert text == "0:128 3000064K:640 5999744K:3200\n"
    text = run(capsys, *WRN, "--batches=32 32 3000000", "--to=csv")
    assert stages(from_text(text)) == ((0, 32), (1_000_000, 64), (2_000_000, 96), (3_000_032, 128))


def test_warnings_are_printed_beside_the_plan(capsys) -> None:
    assert main(["plan", *SIZES, "--curve=constant"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("segment")
    assert printed.err.startswith("batchgrow: warning: the learning rate never falls")
    assert printed.err.count("\n") == 1


def test_olmo_core(capsys) -> None:
    options = ["--max_batch_size=3200", "--to=olmo-core", "--tokens_per_example=10"]
    assert json.loads(run(capsys, *WRN, *options))["batch_sizes"] == [1280, 6400, 32000]


def test_plots(capsys, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    for form in ("--to=table", "--to=csv"):
        assert run(capsys, *WRN, form, f"--plot={tmp_path / 'plan.svg'}") == run(capsys, *WRN, form)
    assert (tmp_path / "plan.svg").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (WRN[1:], "--batch_size is missing: a recipe needs it"),
        ([*WRN, "--momentum=1"], "momentum=1.0 must be at least 0 and below 1"),
        (
            [*WRN, "--optimizer=sgd"],
            "momentum=0.9: the optimizer 'sgd' has no momentum; set it to 0, or take the optimizer "
            "'momentum'",
        ),
        ([*SIZES, "--curve=exponential"], "--decay_rate is missing: --curve=exponential needs it"),
        ([*SIZES, "--curve=wsd"], "--decay_epochs is missing: --curve=wsd needs it"),
        ([*SIZES, "--curve=step"], "--boundaries_epochs is missing: --curve=step needs it"),
        (WRN[:-1], "--factor is missing: --curve=step needs it"),
        ([*WRN, "--power=2"], "--power does not go with --curve=step: leave it out"),
        ([*SIZES, "--factor=1"], "--factor does not go with --curve=constant: leave it out"),
        (
            [*WRN, "--initial_learning_rate=0.1"],
            "--initial_learning_rate goes with --warmup_epochs: give both",
        ),
        (
            [*WRN, "--initial_multiple=1e300", "--max_batch_size=inf"],
            "the first batch size is 1.28e+302, with initial_multiple=1e+300; it must be at most "
            "9,007,199,254,740,992: use a smaller initial_multiple or momentum",
        ),
        (
            [*WRN, "--out=/dev/null/plan"],
            "--out=/dev/null/plan cannot be written (Not a directory); take another path",
        ),
        ([*WRN, "--to=olmo-core"], "--tokens_per_example is missing: OLMo-core counts tokens"),
        (["--from=none.csv"], "[Errno 2] No such file or directory: 'none.csv'"),
        ([*WRN, "--from=none.csv"], "--from has the whole plan: leave out --batch_size"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments: list[str], message: str) -> None:
    assert main(["plan", *arguments]) == 2
    assert capsys.readouterr().err == f"batchgrow: {message}\n"


def test_a_plot_that_cannot_be_written_is_one_line(capsys) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plan", *WRN, "--plot=/dev/null/plan.png"]) == 2
    assert capsys.readouterr().err == (
        "batchgrow: --plot=/dev/null/plan.png cannot be written (Not a directory); take another "
        "path\n"
    )


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "batchgrow", "plan", *WRN]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
