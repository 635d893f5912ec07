"""Plans, and what the adapters need, work where only NumPy is installed."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
HIDE = """
import sys
from importlib.abc import MetaPathFinder
class Hidden(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        top = fullname.partition(".")[0]
        if top not in sys.stdlib_module_names | {"numpy", "batchgrow"}:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
sys.meta_path.insert(0, Hidden())
"""
RECIPE = ["--batch_size=10", "--momentum=0.9", "--num_examples=100", "--num_epochs=4"]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HIDE + program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_plans_and_the_order_of_examples_need_numpy_only() -> None:
    done = run("""
import importlib, pkgutil
import batchgrow.plan
for module in pkgutil.iter_modules(batchgrow.plan.__path__):
    if module.name != "optax_schedules":
        importlib.import_module(f"batchgrow.plan.{module.name}")
from batchgrow import Recipe, Stream, curves, grow, take
from batchgrow.batches import PlanBatches
from batchgrow.plan.exchange import from_text, to_csv
import batchgrow.tracking
plan = grow(Recipe(10, 0.9, curves.step(0.1, (1, 2), 0.5), num_examples=100, num_epochs=4))
plan = from_text(to_csv(plan))
read = [i for _, indices in PlanBatches(plan, Stream(100, 0), max_batch_size=5) for i in indices]
assert len(read) == plan.end_examples and sorted(read[:100]) == list(range(100))
for needs_jax in (lambda: take([1, 2], [0]), lambda: batchgrow.to_optax):
    try:
        needs_jax()
    except ModuleNotFoundError as error:
        assert error.name == "jax", error
    else:
        raise AssertionError("jax is not hidden")
""")
    assert done.returncode == 0, done.stderr


def test_the_command_needs_numpy_only() -> None:
    program = "from batchgrow.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    done = run(program, "plan", *RECIPE, "--learning_rate=0.1", "--curve=cosine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("segment ")
    plot = run(program, "plan", *RECIPE, "--learning_rate=0.1", "--plot=plan.png")
    assert (plot.returncode, plot.stdout) == (2, "")
    assert plot.stderr == "batchgrow: No module named 'matplotlib'\n"


def test_each_adapter_names_what_it_needs() -> None:
    for adapter, needed in (
        ("torch", "torch"),
        ("huggingface", "torch"),
        ("lightning", "lightning"),
        ("keras", "keras"),
    ):
        done = run(f"import batchgrow.{adapter}")
        assert done.stderr.endswith(f"ModuleNotFoundError: No module named '{needed}'\n")
