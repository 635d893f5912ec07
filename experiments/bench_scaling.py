"""Measure updates and examples per second of the training loop on 1, 2, 4 and 8 devices.

    python -m experiments.bench_scaling [--json]

The batch size is the same on all. Without an accelerator the devices are emulated and share the
cores of the host. The table then shows what it costs to divide a batch among devices, or how much
better the cores are used. It does not predict the speed of more hardware.
"""

import math
from typing import Any

import jax
from absl import flags

from experiments import synthetic, timing
from experiments.timing import median

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Batch size of all devices together.")
_NUM_DEVICES = flags.DEFINE_list(
    "num_devices",
    ["1", "2", "4", "8"],
    "Numbers of devices; those that this machine does not have are left out.",
)
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", 10, "Number of repetitions; the result is their median."
)
_BURST_SECONDS = flags.DEFINE_float(
    "burst_seconds", 1.0, "Approximate length of a repetition in seconds."
)

EMULATED = "Emulated devices share one host's cores: no speed-up here is one of more hardware."


def bench(num_devices: int) -> dict[str, Any]:
    """One row of the table."""
    batch_size = _BATCH_SIZE.value
    experiment = timing.make_experiment(
        [(batch_size, synthetic.most_updates(batch_size))],
        ghost_batch_size=max(1, batch_size // 8),
        num_devices=num_devices,
    )
    seconds: list[float] = []

    def ended(_: int, seconds_per_update: float) -> bool:
        seconds.append(seconds_per_update)
        return len(seconds) >= _REPETITIONS.value

    timing.train(experiment, timing.Bursts(_BURST_SECONDS.value, ended))
    rate = 1 / (median(seconds) or math.nan)
    return {
        "model": timing.model_name(experiment),
        "num_devices": num_devices,
        "updates_per_second": rate,
        "examples_per_second": rate * batch_size,
    }


def main() -> str:
    """The table."""
    counts = sorted({int(n) for n in _NUM_DEVICES.value})
    jax.config.update("jax_num_cpu_devices", counts[-1])
    rows = [bench(n) for n in counts if n <= jax.device_count()]
    if not rows:
        raise ValueError(f"--num_devices {counts}: there are only {jax.device_count()} devices")
    first = rows[0]["examples_per_second"]
    rows = [row | {"speedup": row["examples_per_second"] / first} for row in rows]
    notes = [f"batch size {_BATCH_SIZE.value}"]
    if jax.devices()[0].platform == "cpu":
        notes.append(EMULATED)
    return timing.report("bench_scaling", rows, notes)


if __name__ == "__main__":
    timing.run(main)
