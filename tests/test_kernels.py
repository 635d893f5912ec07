"""Which of XLA's CPU kernels a run uses: chosen once, then kept, and without other effect."""

import json
import pathlib
import shutil
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import Trained, run_tiny, tiny_experiment

from batchgrow import kernels
from batchgrow.engine import Engine
from batchgrow.experiment import Outcome
from batchgrow.kernels import Memory
from batchgrow.layout import make_mesh

OTHER: dict[str, dict[str, Any]] = {"xla": {}, "other": {"xla_cpu_enable_fast_min_max": True}}


@pytest.fixture
def choice(monkeypatch, tmp_path):
    """Two kinds of kernels, of which the second is faster; counts the measurements."""
    chosen = SimpleNamespace(name="other", measurements=0, options=[], cache=tmp_path / "cache")

    def fastest(calls: Any) -> str:
        chosen.measurements += 1
        for call in calls.values():
            call()
        return chosen.name

    compile_ = jax.stages.Lowered.compile

    def noted(self: Any, **options: Any) -> Any:
        chosen.options.append(options.get("compiler_options"))
        return compile_(self, **options)

    monkeypatch.setattr(kernels, "OPTIONS", OTHER)
    monkeypatch.setattr(kernels, "available", lambda mesh: tuple(OTHER))
    monkeypatch.setattr(kernels, "MIN_FLOPS", 0.0)
    monkeypatch.setattr(kernels, "MIN_UPDATES", 1)
    monkeypatch.setattr(kernels, "fastest", fastest)
    monkeypatch.setattr(jax.stages.Lowered, "compile", noted)
    monkeypatch.setenv("XLA_FLAGS", "")
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(chosen.cache))
    yield chosen
    jax.config.update("jax_compilation_cache_dir", before)


def assert_same(a: Trained, b: Trained) -> None:
    jax.tree.map(np.testing.assert_array_equal, a.states, b.states)
    assert a.rows == b.rows


def recorded(folder: pathlib.Path) -> Any:
    return json.loads((folder / "task.json").read_text())["cpu_kernels"]


def test_a_run_measures_once_and_equal_runs_take_what_it_found(choice, tmp_path):
    first = run_tiny(tmp_path / "a")
    assert (recorded(tmp_path / "a"), choice.measurements) == ("other", 1)
    assert choice.options.count(OTHER["other"]) >= 2  # the updates of each batch size
    choice.name, choice.options[:] = "xla", []
    second = run_tiny(tmp_path / "b")
    assert (recorded(tmp_path / "b"), choice.measurements) == ("other", 1)
    assert OTHER["other"] in choice.options
    assert_same(first, second)
    run_tiny(tmp_path / "c", {"recipe.batch_size": 64})
    assert (recorded(tmp_path / "c"), choice.measurements) == ("xla", 2)


def test_a_measurement_changes_nothing_that_is_trained(choice, tmp_path, monkeypatch):
    choice.name = "xla"
    measured = run_tiny(tmp_path / "a")
    assert choice.measurements == 1
    monkeypatch.setattr(kernels, "available", lambda mesh: ("xla",))
    plain = run_tiny(tmp_path / "b")
    assert choice.measurements == 1
    assert_same(measured, plain)


def test_a_resumed_run_keeps_its_kernels(choice, tmp_path):
    stopped = run_tiny(tmp_path / "a", stop=lambda seen: True)
    assert stopped.outcome is Outcome.PREEMPTED
    whole = run_tiny(tmp_path / "b")
    shutil.rmtree(choice.cache / kernels.FOLDER)
    choice.name, choice.options[:] = "xla", []
    resumed = run_tiny(tmp_path / "a")
    assert resumed.outcome is Outcome.FINISHED
    assert (recorded(tmp_path / "a"), choice.measurements) == ("other", 1)
    assert OTHER["other"] in choice.options
    assert resumed.rows == whole.rows


def test_a_run_of_before_goes_on_with_the_kernels_that_it_had(choice, tmp_path):
    run_tiny(tmp_path / "a", stop=lambda seen: True)
    task = json.loads((tmp_path / "a/task.json").read_text())
    del task["cpu_kernels"]
    (tmp_path / "a/task.json").write_text(json.dumps(task))
    run_tiny(tmp_path / "a")
    assert (recorded(tmp_path / "a"), choice.measurements) == ("xla", 1)


def test_a_run_whose_kernels_are_not_here_goes_on_without_them(choice, tmp_path, monkeypatch):
    run_tiny(tmp_path / "a", stop=lambda seen: True)
    monkeypatch.setattr(kernels, "available", lambda mesh: ("xla",))
    assert run_tiny(tmp_path / "a").outcome is Outcome.FINISHED
    assert recorded(tmp_path / "a") == "xla"


def test_a_field_decides(choice, tmp_path):
    run_tiny(tmp_path / "a", {"run.cpu_kernels": "xla"})
    assert (recorded(tmp_path / "a"), choice.measurements) == ("xla", 0)
    assert OTHER["other"] not in choice.options


def test_kernels_that_are_not_here_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    with pytest.raises(ValueError, match="run.cpu_kernels 'onednn' needs .* jax 0.10.2 on cpu"):
        run_tiny(tmp_path / "a", {"run.cpu_kernels": "onednn"})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("version", "machine", "names"),
    [
        ("0.12.0.1", "x86_64", ("xla", "onednn")),
        ("1.0.0", "AMD64", ("xla", "onednn")),
        ("0.11.2", "x86_64", ("xla",)),
        ("0.12.0", "aarch64", ("xla",)),
    ],
)
def test_where_there_is_a_choice(monkeypatch, version, machine, names):
    monkeypatch.setattr(jax, "__version__", version)
    monkeypatch.setattr(kernels.platform, "machine", lambda: machine)
    assert kernels.available(make_mesh(1)) == names
    tpu = SimpleNamespace(devices=SimpleNamespace(flat=[SimpleNamespace(platform="tpu")]))
    assert kernels.available(tpu) == ("xla",)  # type: ignore[arg-type]


def test_only_long_runs_of_one_process_measure(monkeypatch):
    experiment, mesh = tiny_experiment(), make_mesh(1)
    monkeypatch.setattr(kernels, "available", lambda mesh: tuple(OTHER))
    monkeypatch.setenv("XLA_FLAGS", "")
    assert not kernels.is_worth_measuring(experiment, mesh)
    flops = kernels.training_flops(experiment.task, experiment.train_data.example)
    monkeypatch.setattr(kernels, "MIN_UPDATES", 1)
    monkeypatch.setattr(kernels, "MIN_FLOPS", flops * experiment.plan.end_examples)
    assert kernels.is_worth_measuring(experiment, mesh)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        assert not kernels.is_worth_measuring(experiment, mesh)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "MIN_UPDATES", 1000)
        assert not kernels.is_worth_measuring(experiment, mesh)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "training_flops", Mock(side_effect=NameError("no axis")))
        assert not kernels.is_worth_measuring(experiment, mesh)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=true")
    assert not kernels.is_worth_measuring(experiment, mesh)


@pytest.mark.parametrize(("other", "best"), [(0.9, "onednn"), (0.99, "xla"), (1.1, "xla")])
def test_other_kernels_must_be_clearly_faster(monkeypatch, other, best):
    now = 0.0

    def call(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(kernels.time, "perf_counter", lambda: now)
    calls = {"xla": partial(call, 1.0), "onednn": partial(call, other)}
    assert kernels.fastest(calls) == best


def test_memory_keeps_choices_and_survives_damage(tmp_path):
    memory = Memory(str(tmp_path / "cache"))
    assert memory.is_writable()
    assert memory.find("a") is None
    assert memory.keep("a", "onednn") == "onednn"
    assert memory.keep("b", "xla") == "xla"
    assert [Memory(str(tmp_path / "cache")).find(key) for key in "abc"] == ["onednn", "xla", None]
    for text in (b"", b"of another version", b"\xff"):
        (tmp_path / "cache" / kernels.FOLDER / "a").write_bytes(text)
        assert memory.find("a") == memory.keep("a", "onednn") == "xla"
    names = sorted(path.name for path in (tmp_path / "cache" / kernels.FOLDER).iterdir())
    assert names == ["a", "b"]


def test_the_first_of_two_equal_runs_decides(choice, tmp_path, monkeypatch):
    """Both measure, find something else, and end with the choice that was kept first."""
    fastest = kernels.fastest

    def meanwhile(calls: Any) -> str:
        Memory(str(choice.cache)).keep(keys[0], "xla")
        return fastest(calls)

    keys: list[str] = []
    key_of = kernels.key_of

    def noted(*arguments: Any) -> str:
        keys.append(key_of(*arguments))
        return keys[-1]

    monkeypatch.setattr(kernels, "key_of", noted)
    monkeypatch.setattr(kernels, "fastest", meanwhile)
    run_tiny(tmp_path / "a")
    assert (recorded(tmp_path / "a"), choice.measurements) == ("xla", 1)


@pytest.mark.parametrize("folder", ["", "gs://bucket/cache", "/dev/null/cache"])
def test_memory_without_a_local_folder_keeps_nothing(folder):
    memory = Memory(folder)
    assert not memory.is_writable()
    assert memory.keep("a", "onednn") == "xla"
    assert memory.find("a") is None


def test_nothing_is_measured_where_nothing_can_be_kept(choice, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/dev/null/cache")
    run_tiny(tmp_path / "a")
    assert (recorded(tmp_path / "a"), choice.measurements) == ("xla", 0)


def test_kernels_that_fail_are_not_taken(choice, monkeypatch):
    called: list[list[str]] = []
    monkeypatch.setattr(kernels, "fastest", lambda calls: called.append(list(calls)) or "xla")
    monkeypatch.setattr(kernels, "OPTIONS", {"xla": {}, "other": {"xla_no_such_option": True}})
    with Engine(tiny_experiment(), make_mesh(1)) as engine:
        assert engine.fastest_kernels(32) == "xla"
    assert called == [["xla"]]


def test_options_that_xla_does_not_know_are_no_choice(monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.12.0")
    monkeypatch.setattr(kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernels, "OPTIONS", {"xla": {}, "renamed": {"xla_no_such_option": True}})
    assert kernels.available(make_mesh(1)) == ("xla",)


@pytest.mark.parametrize(
    "changes",
    [
        {"run.num_devices": 4},
        {"run.input": "streamed"},
        {"recipe.momentum_curve": "one_cycle", "recipe.warmup_epochs": 0.2},
    ],
)
def test_every_kind_of_update_can_be_measured(choice, tmp_path, changes):
    assert run_tiny(tmp_path / "a", changes).outcome is Outcome.FINISHED
    assert (recorded(tmp_path / "a"), choice.measurements) == ("other", 1)


def test_the_key_is_of_the_program():
    experiment, mesh = tiny_experiment(), make_mesh(1)
    with Engine(experiment, mesh) as engine, Engine(experiment, mesh) as again:
        small, large = (engine.compiler.lower(size) for size in (32, 128))
        key = kernels.key_of(small, mesh)
        assert key == kernels.key_of(again.compiler.lower(32), mesh)
        assert key != kernels.key_of(large, mesh)


@pytest.mark.skipif(len(kernels.available(make_mesh(1))) == 1, reason="needs jax 0.12 on x86")
def test_onednn_trains_as_xla_does(tmp_path):
    found = {name: run_tiny(tmp_path / name, {"run.cpu_kernels": name}) for name in kernels.OPTIONS}
    last = [run.rows[-1]["train_loss"] for run in found.values()]
    assert last[0] == pytest.approx(last[1], rel=1e-4)
    model = ConfigDict({"name": "wide_resnet", "depth": 10, "width": 1, "num_classes": 10})
    with Engine(tiny_experiment({"model": model}), make_mesh(1)) as engine:
        engine.use_kernels("onednn")
        assert "onednn" in engine.updates.get(32).executable.as_text()
