"""Measure updates and examples per second of compiled updates on 1, 2, 4 and 8 devices.

    python -m experiments.bench_scaling [--json]

The batch size is the same on all. The numbers of devices take turns in one process, and `speedup`
is the median over the turns of the ratio to the smallest number. Without an accelerator the devices
are emulated and share the cores of the host. The table then shows what it costs to divide a batch
among devices, or how much better the cores are used. It does not predict the speed of more
hardware.
"""

from statistics import median

import jax
from absl import flags

from batchgrow.experiment import Experiment
from experiments import benchmark, synthetic, timing

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Batch size of all devices together.")
_NUM_DEVICES = flags.DEFINE_list(
    "num_devices",
    ["1", "2", "4", "8"],
    "Numbers of devices; those that this machine does not have are left out.",
)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Seconds of measurement for each number of devices.")

EMULATED = "Emulated devices share one host's cores: no speed-up here is one of more hardware."


def make_experiment(num_devices: int) -> Experiment:
    """What is measured on so many devices."""
    batch_size = _BATCH_SIZE.value
    return timing.make_experiment(
        [(batch_size, synthetic.most_updates(batch_size))],
        ghost_batch_size=max(1, batch_size // 8),
        num_devices=num_devices,
    )


def main() -> str:
    """The table."""
    asked = sorted({int(n) for n in _NUM_DEVICES.value})
    jax.config.update("jax_num_cpu_devices", asked[-1])
    counts = [n for n in asked if n <= jax.device_count()]
    if not counts:
        raise ValueError(f"--num_devices {asked}: there are only {jax.device_count()} devices")
    experiments = {str(n): make_experiment(n) for n in counts}
    measured = {name: synthetic.updates(made) for name, made in experiments.items()}
    turns = synthetic.take_turns({n: x.call for n, x in measured.items()}, _SECONDS.value)
    seconds = {n: [s / measured[n].num_updates for s in turns[n]] for n in turns}
    base = str(counts[0])
    rows = [
        {
            "model": timing.model_name(experiments[n]),
            "num_devices": int(n),
            "updates_per_second": 1 / median(seconds[n]),
            "examples_per_second": _BATCH_SIZE.value / median(seconds[n]),
            "speedup": median(a / b for a, b in zip(seconds[base], seconds[n], strict=True)),
            "turns": len(seconds[n]),
        }
        for n in seconds
    ]
    notes = [f"batch size {_BATCH_SIZE.value}; speedup: over {base} device(s), within a turn"]
    if jax.devices()[0].platform == "cpu":
        notes.append(EMULATED)
    return benchmark.report("bench_scaling", rows, notes, dtype=timing.DTYPE.value)


if __name__ == "__main__":
    benchmark.run(main)
