"""Each benchmark runs as a command at a tiny size; what the numbers are is no test."""

import json
import math
import os
import subprocess
import sys

import jax
import pytest

COLUMNS = {
    "growth": {"update_ms", "compile_seconds", "naive_stall_ratio", "stall_ratio"},
    "step": {"loop_ms", "bare_ms", "overhead_ratio"},
    "scaling": {"updates_per_second", "images_per_second", "speedup"},
}
OPTIONS = {
    "growth": "--growths=1 --batch_size=16 --updates=8 --repetitions=1",
    "step": "--turns=2 --burst_seconds=0.01",
    "scaling": "--num_devices=1,2 --batch_size=16 --repetitions=2 --burst_seconds=0.01",
}


def run_benchmark(name: str, *more: str) -> str:
    command = [sys.executable, "-m", f"experiments.bench_{name}", "--depth=0", "--image_size=8"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
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
    if name == "growth":  # the compile is seen without compiling ahead, and not with it
        assert result["rows"][0]["stall_ratio"] < result["rows"][0]["naive_stall_ratio"]
