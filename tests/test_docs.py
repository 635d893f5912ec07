"""The programs in docs/ run as they stand, and the pages build without a warning."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import batchgrow
from batchgrow.config import make_experiment
from batchgrow.train import Outcome, train
from configs import digits

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))
PAGES = sorted((ROOT / "docs").glob("*.md"))


def run(program: pathlib.Path) -> str:
    """What the program prints for a reader, who has no flags of the tests."""
    return subprocess.run(
        [sys.executable, program],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        | {"PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    ).stdout


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_shown(program):
    assert any(f"{{literalinclude}} examples/{program.name}" in p.read_text() for p in PAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "untrained_loss", "tolerance"),
    [("cosine", 0.6, 0.05), ("transformer", 3.0, 0.05)],
)
def test_growth_reaches_the_same_loss_in_fewer_updates(name, untrained_loss, tolerance):
    decay, grow = map(numbers, run(ROOT / f"docs/examples/{name}.py").splitlines())
    assert grow[0] < decay[0] / 1.4
    assert len(grow) == len(decay) > 1
    for by_growth, by_decay in zip(grow[1:], decay[1:], strict=True):
        assert by_growth == pytest.approx(by_decay, rel=tolerance)
        assert by_growth < untrained_loss * 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("nnx", "flax"),
        ("torch", "torch"),
        ("huggingface", "transformers"),
        ("lightning", "lightning"),
        ("keras", "keras"),
    ],
)
def test_programs_of_the_pages_reach_the_same_loss_in_fewer_updates(name, package, monkeypatch):
    pytest.importorskip(package)
    program = ROOT / f"docs/examples/{name}_digits.py"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    lines = [line for line in run(program).splitlines() if line.startswith(("decay:", "grow:"))]
    decayed, grown = map(numbers, lines)
    assert (decayed[0], grown[0]) == (1796, 1038)
    assert grown[1] == pytest.approx(decayed[1], rel=0.2) and grown[1] < 0.01
    assert min(grown[2], decayed[2]) > 0.97


@pytest.mark.slow
def test_ghost_batch_norm_example_learns_while_the_batch_grows():
    lines = [numbers(line) for line in run(ROOT / "docs/examples/ghost_batch_norm.py").splitlines()]
    assert [batch_size for batch_size, _ in lines] == [16, 32, 128]
    assert min(accuracy for _, accuracy in lines) >= 0.9


@pytest.mark.slow
def test_noise_example_grows_its_batch():
    sizes = [numbers(line)[0] for line in run(ROOT / "docs/examples/noise.py").splitlines()]
    assert sizes[0] == 8 < sizes[-1] and sizes == sorted(sizes)


@pytest.mark.slow
def test_compile_ahead_example_compiles_each_size_once():
    """How long it waits depends on the machine; tests/test_compile.py shows when it waits."""
    lines = [numbers(line) for line in run(ROOT / "docs/examples/compile_ahead.py").splitlines()]
    assert [batch_size for batch_size, _, _ in lines] == [32, 128]
    assert all(compiled > 0 for _, compiled, _ in lines)


@pytest.mark.slow
def test_pages_build_without_warnings_and_name_the_whole_public_api(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", "-d", "doctrees"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    reference = "".join(path.read_text() for path in (tmp_path / "html/api").glob("*.html"))
    missing = [name for name in batchgrow.__all__ if f'id="batchgrow.{name}"' not in reference]
    assert missing == ["curves"]  # a module, with a section of its own
    assert 'id="module-batchgrow.plan.curves"' in reference


@pytest.mark.slow
def test_a_trained_model_is_loaded_as_its_page_says(tmp_path, monkeypatch):
    config = digits.get_config("hybrid")
    config.recipe.num_epochs, config.recipe.boundaries_epochs = 0.5, (0.2, 0.3, 0.4)
    config.run.tensorboard = config.run.progress = False
    assert train(make_experiment(config), str(tmp_path / "runs/hybrid")) is Outcome.FINISHED
    page = (ROOT / "docs/run_folder.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "read_variables" in b]
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(block, found)
    assert found["variables"].keys() == {"params", "batch_stats"}
    np.testing.assert_allclose(np.sum(found["probabilities"], axis=1), np.ones(10), rtol=1e-5)


def test_python_in_pages_runs():
    """Snippets of whole programs; those with `...` show a part of one that is run above."""
    blocks = [
        (page.name, block)
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        if "..." not in block
    ]
    assert blocks
    for page, block in blocks:
        source = [{"x": float(number)} for number in range(200)]
        exec(compile(block, page, "exec"), {"source": source})
