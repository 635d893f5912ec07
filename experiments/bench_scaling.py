"""Updates and images a second of the training loop on 1, 2, 4, 8 devices.

    python -m experiments.bench_scaling [--json]

The global batch stays the same. Where there is no accelerator the devices are emulated ones, which
share the host's cores: the table then shows what more devices cost, or how much better the same
cores are used by smaller pieces, and nothing of what more hardware would gain.
"""

import math
from typing import Any

import jax
from absl import flags

from batchgrow.loop import run_phases
from experiments import timing
from experiments.timing import median

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Of all devices together.")
_NUM_DEVICES = flags.DEFINE_list("num_devices", ["1", "2", "4", "8"], "Those at hand are taken.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 10, "Medians are taken over them.")
_BURST_SECONDS = flags.DEFINE_float("burst_seconds", 1.0, "Length of a repetition, about.")

EMULATED = "Emulated devices share one host's cores: no speed-up here is one of more hardware."


def bench(num_devices: int) -> dict[str, Any]:
    """One row of the table."""
    ghost_batch_size = max(1, _BATCH_SIZE.value // 8)
    config = timing.make_config(ghost_batch_size=ghost_batch_size, num_devices=num_devices)
    seconds: list[float] = []

    def ended(_: int, seconds_per_dispatch: float) -> bool:
        seconds.append(seconds_per_dispatch)
        return len(seconds) >= _REPETITIONS.value

    phases = [(_BATCH_SIZE.value, timing.UNLIMITED)]
    bursts = timing.Bursts(_BURST_SECONDS.value, ended)
    with timing.watched_run(config, phases, bursts, compile_ahead=False) as (run, state):
        run_phases(run, state, 0)
    rate = run.programs.updates_per_dispatch(_BATCH_SIZE.value) / (median(seconds) or math.nan)
    return {
        "num_devices": num_devices,
        "updates_per_second": rate,
        "images_per_second": rate * _BATCH_SIZE.value,
    }


def main() -> str:
    """The table."""
    counts = sorted({int(n) for n in _NUM_DEVICES.value})
    jax.config.update("jax_num_cpu_devices", counts[-1])
    rows = [bench(n) for n in counts if n <= jax.device_count()]
    if not rows:
        raise ValueError(f"--num_devices {counts}: there are only {jax.device_count()} devices")
    first = rows[0]["images_per_second"]
    rows = [row | {"speedup": row["images_per_second"] / first} for row in rows]
    model = timing.model_name(timing.make_config(ghost_batch_size=1))
    notes = [f"{model}, global batch {_BATCH_SIZE.value}"]
    if jax.devices()[0].platform == "cpu":
        notes.append(EMULATED)
    return timing.report("bench_scaling", rows, notes)


if __name__ == "__main__":
    timing.run(main)
