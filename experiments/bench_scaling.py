"""Updates and images a second of the training loop on 1, 2, 4, 8 devices.

    python -m experiments.bench_scaling [--json]

The global batch stays the same. Where there is no accelerator the devices are emulated ones, which
share the host's cores: the table then shows what more devices cost, and no speed-up.
"""

import time
from typing import Any

import jax
from absl import flags

from batchgrow.loop import run_phases
from experiments import cli, timing
from experiments.timing import median

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Of all devices together.")
_NUM_DEVICES = flags.DEFINE_list("num_devices", ["1", "2", "4", "8"], "Those at hand are taken.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 10, "Medians are taken over them.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "For each number of devices, after compiling.")

WARM_UP = 3  # dispatches
EMULATED = "Emulated devices share one host: what more of them cost, no speed-up."


def bench(num_devices: int) -> dict[str, Any]:
    """One row of the table: medians over repetitions of several updates each."""
    ghost_batch_size = max(1, _BATCH_SIZE.value // 8)
    config = timing.make_config(ghost_batch_size=ghost_batch_size, num_devices=num_devices)
    rates: list[float] = []
    ends: list[float] = []

    def watch(_: int, token: jax.Array) -> None:
        """Waits at the ends of repetitions only, so that the loop runs ahead in between."""
        ends.append(time.perf_counter())
        since_warm_up = len(ends) - WARM_UP
        if since_warm_up < 0:
            return
        if since_warm_up == 0:
            token.block_until_ready()
            ends[-1] = time.perf_counter()
            return
        # One dispatch more would end beyond this repetition's share of the time.
        begun = ends[starts[-1]]
        share = _SECONDS.value / _REPETITIONS.value
        done = len(ends) - 1 - starts[-1]
        if (ends[-1] - begun) * (done + 1) / done > share:
            token.block_until_ready()
            ends[-1] = time.perf_counter()
            num_updates = done * run.programs.updates_per_dispatch
            rates.append(num_updates / (ends[-1] - begun))
            starts.append(len(ends) - 1)
        run.preemption.enough = len(rates) == _REPETITIONS.value

    starts = [WARM_UP - 1]
    phases = [(_BATCH_SIZE.value, timing.UNLIMITED)]
    with timing.watched_run(config, phases, watch, compile_ahead=False) as (run, state):
        run_phases(run, state, 0)
    rate = median(rates) or 0.0
    return {
        "num_devices": num_devices,
        "updates_per_second": rate,
        "images_per_second": rate * _BATCH_SIZE.value,
    }


def main() -> int:
    """Prints the table."""
    counts = sorted({int(n) for n in _NUM_DEVICES.value})
    jax.config.update("jax_num_cpu_devices", counts[-1])
    rows = [bench(n) for n in counts if n <= jax.device_count()]
    if not rows:
        raise ValueError(f"--num_devices {counts}: there are only {jax.device_count()} devices")
    first = rows[0]["images_per_second"]
    rows = [row | {"speedup": row["images_per_second"] / first} for row in rows]
    notes = [f"{timing.model_name(timing.make_config(ghost_batch_size=1))}"]
    notes[0] += f", global batch {_BATCH_SIZE.value}"
    if jax.devices()[0].platform == "cpu":
        notes.append(EMULATED)
    print(timing.report("bench_scaling", rows, notes))
    return 0


if __name__ == "__main__":
    cli.run(main)
