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
        ("configs", ("batchgrow.config", "batchgrow.data.text", "configs")),
        ("batchgrow.plan", ("batchgrow.plan", "batchgrow.text_table")),
        ("batchgrow.text_table", ()),
        ("batchgrow.plan.curves", ()),
        ("batchgrow.plan.coupling", ()),
        ("batchgrow.plan.recipe", ("batchgrow.plan.curves", "batchgrow.plan.coupling")),
        ("batchgrow.plan.segments", ()),
        (
            "batchgrow.plan.describe",
            ("batchgrow.plan.recipe", "batchgrow.plan.segments", "batchgrow.text_table"),
        ),
        (
            "batchgrow.plan.plan",
            (
                "batchgrow.plan.recipe",
                "batchgrow.plan.segments",
                "batchgrow.plan.describe",
                "batchgrow.plan.curves",
            ),
        ),
        ("batchgrow.names", ()),
        ("batchgrow.errors", ()),
        ("batchgrow.models", ("batchgrow.models", "batchgrow.names")),
        (
            "batchgrow.data",
            (
                "batchgrow.data",
                "batchgrow.devices",
                "batchgrow.errors",
                "batchgrow.names",
                "batchgrow.layout",
            ),
        ),
        ("batchgrow.tasks", ("batchgrow.tasks", "batchgrow.models", "batchgrow.data.augment")),
        ("batchgrow.layout", ("batchgrow.models.ghost_batch_norm",)),
        ("batchgrow.devices", ()),
        ("batchgrow.optimizer", ("batchgrow.plan.coupling",)),
        ("batchgrow.compile", ()),
        ("batchgrow.step", ("batchgrow.tasks",)),
        ("batchgrow.run.timers", ()),
        ("batchgrow.run.position", ("batchgrow.experiment", "batchgrow.plan")),
        ("batchgrow.run.files", ("batchgrow.errors",)),
        ("batchgrow.run.log", ("batchgrow.run.files",)),
        ("batchgrow.run.folder", ("batchgrow.names", "batchgrow.run.files")),
        (
            "batchgrow.report",
            (
                "batchgrow.report",
                "batchgrow.names",
                "batchgrow.plan.growth",
                "batchgrow.plan.noise",
                "batchgrow.run.folder",
                "batchgrow.run.timers",
                "batchgrow.text_table",
            ),
        ),
    ],
)
def test_imports_only_what_is_below(importer, allowed):
    inside = [m for m in MODULES if m == importer or m.startswith(importer + ".")]
    assert inside
    for name in inside:
        beyond = [
            m for m in ours(name) if not any(m == a or m.startswith(a + ".") for a in allowed)
        ]
        assert beyond == [], name


def test_nothing_below_the_config_sees_a_config():
    """The loop, and all that it uses, get plain values."""
    reached, waiting = set(), ["batchgrow.train"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += ours(name) - reached
    assert {"batchgrow.engine", "batchgrow.step", "batchgrow.run.checkpoints"} < reached
    assert "batchgrow.config" not in reached
    library = {name for name in MODULES if name.startswith("batchgrow")}
    assert [name for name in library if "ml_collections" in imports(name)] == [
        "batchgrow.config.fields"
    ]


def loaded_by(*modules: str) -> set[str]:
    """The packages that a new interpreter loads for these modules, without the standard library."""
    program = f"""
import sys
before = set(sys.modules)  # what the interpreter itself and its site packages load
import {", ".join(modules)}
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(*(loaded - sys.stdlib_module_names - {{"batchgrow"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_reports_load_no_jax():
    """By what is loaded, not by what is written: a library may import another."""
    loaded = loaded_by("batchgrow.report", "batchgrow.run.log")
    assert "numpy" in loaded and not loaded & {"jax", "flax", "optax"}


def test_public_names_are_there():
    import batchgrow

    for name in batchgrow.__all__:
        assert getattr(batchgrow, name) is not None
    assert set(batchgrow.__all__) <= set(dir(batchgrow))
    with pytest.raises(AttributeError, match="no attribute 'train_on'"):
        batchgrow.train_on  # noqa: B018
