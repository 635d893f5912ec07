"""Each benchmark runs as a command at a tiny size; what the numbers are is no test."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.slope import fit

COLUMNS = {
    "growth": {"update_ms", "compile_seconds", "naive_stall_ratio", "stall_ratio"},
    "step": {"loop_ms", "bare_ms", "overhead_ratio", "noise_cost"},
    "scaling": {"updates_per_second", "examples_per_second", "speedup"},
    "cifar10": {"examples_per_second"},
}
SMALL = "--depth=0 --image_size=8"
OPTIONS = {
    "growth": f"{SMALL} --growths=1 --batch_size=16 --updates=8 --repetitions=1",
    "step": f"{SMALL} --turns=2 --burst_seconds=0.01",
    "scaling": f"{SMALL} --num_devices=1,2 --batch_size=16 --seconds=0.01",
    "cifar10": "--depth=10 --width=1 --batch_sizes=128 --updates_per_dispatch=1 --seconds=0.1",
    "slopes": "--rows=20 --calls=10",
    "imagenet": "--models=resnet18 --image_size=32 --batch_sizes=2 --seconds=0.1 --dtype=float32",
}


def run_benchmark(name: str, *more: str) -> str:
    command = [sys.executable, "-m", f"experiments.bench_{name}"]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # one device
    done = subprocess.run(
        [*command, *OPTIONS[name].split(), *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", COLUMNS)
def test_prints_json(name: str) -> None:
    result = json.loads(run_benchmark(name, "--json"))
    assert result["benchmark"] == f"bench_{name}"
    assert result["devices"]["platform"] == jax.devices()[0].platform
    assert {"commit", "versions", "command", "dtype", "notes"} <= set(result)
    assert len(result["rows"]) == (2 if name == "scaling" else 1)
    for row in result["rows"]:
        assert all(math.isfinite(row[column]) and row[column] > 0 for column in COLUMNS[name])
    if name == "step":  # the same mathematics
        assert result["rows"][0]["loss_difference"] < 1e-4
    if name == "scaling":
        assert "speedup: over 1 device(s), within a turn" in result["notes"][0]
        assert [row["turns"] for row in result["rows"]] == [result["rows"][0]["turns"]] * 2
        assert result["rows"][0]["speedup"] == 1


@pytest.mark.slow
def test_imagenet_at_small_size() -> None:
    result = json.loads(run_benchmark("imagenet", "--json"))
    (row,) = result["rows"]
    assert (row["model"], row["image_size"], row["per_device_batch_size"]) == ("resnet18", 32, 2)
    assert row["examples_per_second"] * row["seconds_per_example"] == pytest.approx(1, rel=0.1)
    assert result["devices"]["count"] == 1 and result["dtype"] == "float32"


def test_a_slope_is_found_within_its_interval() -> None:
    """8 a sample beside noise, after a warm-up that rises more steeply."""
    noise = np.random.default_rng(0).normal(0, 100, 1000)
    values = 8.0 * np.arange(1000) + noise
    values[:200] += np.linspace(-1e5, 0, 200)
    found = fit(values.tolist())
    assert found["low"] < 8 < found["high"] and found["high"] - found["low"] < 0.2
    assert found["samples"] == 1000
    flat = fit([7.0] * 20)
    assert (flat["first"], flat["last"], flat["slope"], flat["low"]) == (7, 7, 0, 0)


@pytest.mark.slow
def test_slopes_are_those_of_memory_files_and_threads() -> None:
    rows = json.loads(run_benchmark("slopes", "--json"))["rows"]
    counts = ("memory_kb", "allocated_kb", "open_files", "threads")
    assert [(row["count"], row["per"]) for row in rows] == [
        (count, per) for per in ("row", "run") for count in counts
    ]
    assert [row["samples"] for row in rows] == [20] * 4 + [10] * 4
    for row in rows:
        assert row["low"] <= row["slope"] <= row["high"] and row["last"] > 0
