"""Imports point one way only, and what needs no JAX does not load it."""

import ast
import pathlib
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OURS = ("batchgrow", "configs", "experiments")


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for top in OURS for path in sorted((ROOT / top).rglob("*.py"))}


def imports(name: str) -> set[str]:
    """The modules that `name` imports, anywhere in it; ours down to the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {node.module or ""}
    return found


def ours(name: str) -> set[str]:
    return {module for module in imports(name) if module.split(".")[0] in OURS}


def test_no_cycles():
    graph = {name: ours(name) - {name} for name in MODULES}
    assert set(TopologicalSorter(graph).static_order()) >= MODULES.keys()


@pytest.mark.parametrize(
    ("importer", "allowed"),
    [
        ("batchgrow", ("batchgrow",)),
        ("configs", ("batchgrow.config", "configs")),
        ("batchgrow.plan.plan", ("batchgrow.plan.curves",)),
        ("batchgrow.plan.curves", ()),
        ("batchgrow.plan.time_to_train", ("batchgrow.plan.plan",)),
        ("batchgrow.run.files", ()),
        ("batchgrow.run.log", ("batchgrow.run.files",)),
        ("batchgrow.run.folder", ("batchgrow.run.files",)),
        ("batchgrow.report", ("batchgrow.report",)),
        ("batchgrow.models", ("batchgrow.models",)),
        ("batchgrow.data", ("batchgrow.data",)),
        ("batchgrow.optimizer", ()),
        ("batchgrow.step", ("batchgrow.state",)),
        ("batchgrow.compile", ()),
    ],
)
def test_imports_only_what_lies_below(importer, allowed):
    inside = [m for m in MODULES if m == importer or m.startswith(importer + ".")]
    assert inside
    for name in inside:
        beyond = [
            m for m in ours(name) if not any(m == a or m.startswith(a + ".") for a in allowed)
        ]
        assert beyond == [], name


def test_nothing_below_the_loop_sees_a_config():
    """What `train` takes from a config reaches the loop, and all that it uses, as plain values."""
    reached, waiting = set(), ["batchgrow.loop"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += ours(name) - reached
    assert {"batchgrow.programs", "batchgrow.step", "batchgrow.run.checkpoints"} < reached
    assert not reached & {"batchgrow.config", "batchgrow.train"}
    assert not [name for name in reached if "ml_collections" in imports(name)]


def test_one_file_maps_over_devices():
    def maps(path: pathlib.Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        return bool(names & {"pmap", "shard_map"})

    library = {name: path for name, path in MODULES.items() if name.startswith("batchgrow")}
    assert [name for name, path in library.items() if maps(path)] == ["batchgrow.layout"]


def test_plans_need_the_standard_library_and_reports_no_jax():
    """By what is loaded, not by what is written: a library may import another.

    etils only serves the package's own lazy imports.
    """
    program = """
import sys
before = set(sys.modules)  # what the interpreter itself and its site packages load
import batchgrow.plan.curves, batchgrow.plan.plan, batchgrow.plan.time_to_train
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert loaded - sys.stdlib_module_names <= {"batchgrow", "etils"}, loaded
import batchgrow.report, batchgrow.run.log
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"jax", "flax", "optax"}, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
