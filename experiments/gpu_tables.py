"""Measure what README's empty GPU cells need: benchmarks and CIFAR-10 at full size, on one GPU.

    python -m experiments.gpu_tables --data_dir=DIR [--minutes=40]

The most telling measurements come first. Each result is kept in experiments/results/DEVICE, with
the device and the versions; `tables.md` there shows all of them. What is kept is not measured
again, and an interrupted training run continues: start the same command again until nothing is
missing. CIFAR-10 has one seed for each plan.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import cli, recording
from experiments.recording import Measurement

VARIANTS = (
    "increasing_batch",
    "original",
    "increased_lr",
    "increasing_batch_5120",
    "increased_momentum",
    "hybrid",
)


def measurements(workdir: pathlib.Path, torch: Sequence[str] = ()) -> list[Measurement]:
    """All of them, the most telling first.

    Args:
      workdir: folder of the training runs, in the repository's root if it is relative.
      torch: `recording.torch_flags`.
    """
    growth = "--width=4 --batch_size=128 --factor=5 --dtype=bfloat16 --json"
    benchmarks = [
        Measurement("bench_growth", ("bench_growth", *growth.split())),
        Measurement("bench_growth_default", ("bench_growth", "--json")),
        Measurement("bench_cifar10", ("bench_cifar10", *torch, "--json")),
        Measurement("bench_step", ("bench_step", "--dtype=bfloat16", "--json")),
        Measurement("bench_imagenet", ("bench_imagenet", "--json")),
    ]
    trainings = [_training(v, workdir / v) for v in VARIANTS]
    return benchmarks[:1] + trainings[:1] + benchmarks[1:] + trainings[1:]


def _training(variant: str, workdir: pathlib.Path) -> Measurement:
    arguments = ("sweep", "--config=configs/cifar10.py", f"--variants={variant}", "--seeds=1")
    return Measurement(
        f"cifar10_{variant}",
        (*arguments, f"--workdir={workdir}"),
        recording.ROOT / workdir / "report" / "report.json",
    )


def main(_: list[str]) -> int:
    """Measures what is missing; the exit status is that of `recording.record`."""
    folder = recording.folder_of_device()
    if folder.name == "cpu":
        raise ValueError("there is no GPU here; see README for what runs on a CPU")
    if flags.FLAGS.data_dir is not None:  # not as a flag: what is recorded names no folder
        os.environ["TFDS_DATA_DIR"] = os.path.abspath(flags.FLAGS.data_dir)
    workdir = pathlib.Path(flags.FLAGS.workdir) / folder.name
    found = measurements(workdir, recording.torch_flags())
    return recording.record(found, folder, flags.FLAGS.minutes)


if __name__ == "__main__":  # the flags have the names of other commands' flags
    flags.DEFINE_float("minutes", 40.0, "When to stop.")
    flags.DEFINE_string(
        "workdir", "runs/gpu_tables", "Folder of the training runs, a folder in it for each device."
    )
    flags.DEFINE_string(
        "data_dir", None, "Where tensorflow_datasets keeps CIFAR-10 (default: $TFDS_DATA_DIR)."
    )
    cli.run(main)
