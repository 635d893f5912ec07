"""Processes that differ are refused on all of them (two real ones), and data sets differ."""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_experiment

from batchgrow.names import flatten
from batchgrow.run.agreement import check_agreement, check_shared, fingerprint, run_facts
from experiments.ports import free_port

HERE = pathlib.Path(__file__).parent
TIME_LIMIT = 200  # seconds, on a machine that is busy with other things


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By scenario of tests/run_member.py, what it gave on processes 0 and 1."""
    folder = tmp_path_factory.mktemp("members")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "XLA_FLAGS": ""}
    command = [sys.executable, str(HERE / "run_member.py"), str(folder), str(free_port())]
    processes = []
    for index in range(2):
        with open(folder / f"{index}.log", "w") as log:
            processes.append(
                subprocess.Popen([*command, str(index)], env=environment, stdout=log, stderr=log)
            )
    try:
        statuses = [process.wait(TIME_LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [(folder / f"{index}.log").read_text() for index in range(2)]
    assert statuses == [0, 0], "\n".join(logs)
    assert not list(folder.rglob(".shared*"))
    first, second = (json.loads((folder / f"{index}.json").read_text()) for index in range(2))
    return {name: (first[name], second[name]) for name in first}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("seed", "ValueError: the processes differ: seed is 0 on process 0, 1 on process 1; start"),
        ("plan", "differ: plan is 0 1 2 3 4 5 6 7 8 9 ... (CRC-32 "),
        ("missing", "differ: data.name is missing on process 0, digits on process 1; start all"),
        ("many", "field7 is 0 on process 0, 1 on process 1; 12 more; start all of them"),
        ("apart", "process 1 cannot see what process 0 writes there; all processes need the same"),
        ("gone", "process 0 cannot write there"),
    ],
)
def test_every_process_says_what_differs(
    results: dict[str, tuple[Any, Any]], scenario: str, said: str
) -> None:
    for text in results[scenario]:
        assert said in text
        assert "\n" not in text


@pytest.mark.slow
def test_processes_that_agree_pass(results: dict[str, tuple[Any, Any]]) -> None:
    assert results["equal"] == results["shared"] == (None, None)
    assert results["all agree"] == ([True, False], [True, False])


@pytest.mark.slow
def test_a_signal_after_a_checkpoint_is_not_lost(results: dict[str, tuple[Any, Any]]) -> None:
    first, second = results["stopped after"]
    assert first == second
    assert 6 <= first < 100


@pytest.mark.slow
def test_processes_at_different_barriers_do_not_wait(results: dict[str, tuple[Any, Any]]) -> None:
    broken = "another process could not write; see its message"
    assert results["barriers"] == (["met", "met", "met", broken, broken],) * 2


def test_one_process_compares_nothing(tmp_path: pathlib.Path) -> None:
    check_agreement({"seed": "0"})
    check_shared(epath.Path(tmp_path / "not there"))


@dataclass
class InMemory:
    arrays: dict[str, np.ndarray]

    @property
    def num_examples(self) -> int:
        return len(self.arrays["x"])


@dataclass
class OnDisk:
    arrays_on_disk: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.arrays_on_disk)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return self.arrays_on_disk[indices]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def test_a_fingerprint_is_that_of_the_content() -> None:
    x = np.arange(600, dtype=np.float32).reshape(100, 6)
    original = fingerprint(InMemory({"x": x}))
    assert original == fingerprint(InMemory({"x": x.copy()}))
    assert original.startswith("100 examples, CRC-32 ")
    changed = x.copy()
    changed[50, 3] += 1
    others = [changed, x.astype(np.float64), x.reshape(100, 3, 2), x[:99]]
    fingerprints = {fingerprint(InMemory({"x": other})) for other in others}
    fingerprints.add(fingerprint(InMemory({"x": x, "y": x})))
    assert len(fingerprints | {original}) == 6
    on_disk = fingerprint(OnDisk(x))
    assert on_disk == fingerprint(OnDisk(x.copy())) != fingerprint(OnDisk(x + 1))
    assert fingerprint(OnDisk(x[:3]))


def test_every_field_but_those_of_one_process_is_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    experiment = tiny_experiment()
    facts = run_facts(experiment, experiment.settings, epath.Path(tmp_path))
    assert flatten(experiment.settings).keys() - facts.keys() == {
        "run.data_dir",
        "run.num_workers",
        "run.compilation_cache_dir",
        "run.progress",
        "run.tensorboard",
    }
