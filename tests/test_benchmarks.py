"""Each benchmark runs as a command at a tiny size; what the numbers are is no test."""

import json
import math
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags

from batchgrow import parallel
from experiments import bench_step, timing

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
    if name == "growth":  # the compile is seen without compiling ahead, and not with it
        assert result["rows"][0]["stall_ratio"] < result["rows"][0]["naive_stall_ratio"]


def test_the_bare_step_does_what_the_loop_does() -> None:
    """Three updates on the same examples leave the same parameters and batch statistics."""
    flags.FLAGS(["test"])
    config = timing.make_config(ghost_batch_size=16, tiny=True)
    size = config.ghost_batch_size
    with timing.watched_run(config, [(size, 3)], lambda *_: False, compile_ahead=False) as (
        run,
        state,
    ):
        (bare,) = bench_step.bare_steps(config, run.feed.dataset).values()
        np.testing.assert_array_equal(bare.state[0]["classifier"]["kernel"], state.params["classifier"]["kernel"])
        program = run.programs.train(size)
        index = np.arange(size, dtype=np.int32).reshape(1, 1, 1, size)
        batch = {"index": index, "position": index.astype(np.uint32)}
        rate, once = np.array([1e-2], np.float32), np.int32(1)
        for _ in range(3):
            state, _ = program.executable(state, batch, rate, once, run.dataset)
        bare(3, learning_rate=1e-2)
    expected: Any = (state.params, state.batch_stats)
    for ours, theirs in zip(
        jax.tree.leaves(bare.state[:2]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
