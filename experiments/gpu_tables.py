"""Fill the empty GPU cells of README: benchmarks and CIFAR-10 at full size, on one GPU.

    python -m experiments.gpu_tables --data_dir=DIR [--minutes=40]

The most telling measurements come first. Each result is kept in experiments/results/DEVICE, with
the device and the versions; `tables.md` there shows all of them. What is kept is not measured
again, and an interrupted training run continues: start the same command again until nothing is
missing. CIFAR-10 has one seed for each plan.
"""

import importlib.util
import pathlib

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


def measurements(workdir: pathlib.Path, data_dir: str | None) -> list[Measurement]:
    """All of them, the most telling first.

    Args:
      workdir: folder of the training runs.
      data_dir: where tensorflow_datasets keeps CIFAR-10, or None for its default.
    """
    torch = ["--torch"] if importlib.util.find_spec("torch") else []
    growth = "--width=4 --batch_size=128 --factor=5 --dtype=bfloat16 --json"
    benchmarks = [
        Measurement("bench_growth", ("bench_growth", *growth.split())),
        Measurement("bench_cifar10", ("bench_cifar10", *torch, "--json")),
        Measurement("bench_step", ("bench_step", "--dtype=bfloat16", "--json")),
        Measurement("bench_imagenet", ("bench_imagenet", "--json")),
    ]
    trainings = [_training(v, workdir.absolute() / v, data_dir) for v in VARIANTS]
    return benchmarks[:1] + trainings[:1] + benchmarks[1:] + trainings[1:]


def _training(variant: str, workdir: pathlib.Path, data_dir: str | None) -> Measurement:
    arguments = ["sweep", "--config=configs/cifar10.py", f"--variants={variant}", "--seeds=1"]
    if data_dir is not None:
        arguments.append(f"--data_dir={data_dir}")
    return Measurement(
        f"cifar10_{variant}",
        (*arguments, f"--workdir={workdir}"),
        workdir / "report" / "report.json",
    )


def main(_: list[str]) -> int:
    """Measures what is missing; the exit status is 75 if something still is."""
    folder = recording.folder_of_device()
    if folder.name == "cpu":
        raise ValueError("there is no GPU here; see README for what runs on a CPU")
    found = measurements(pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.data_dir)
    missing = recording.record(found, folder, flags.FLAGS.minutes)
    print(f"{folder / 'tables.md'}: {missing} measurements are missing")
    return 75 if missing else 0


if __name__ == "__main__":  # the flags have the names of other commands' flags
    flags.DEFINE_float("minutes", 40.0, "When to stop.")
    flags.DEFINE_string("workdir", "runs/gpu_tables", "Folder of the training runs.")
    flags.DEFINE_string(
        "data_dir", None, "Where tensorflow_datasets keeps CIFAR-10 (default: $TFDS_DATA_DIR)."
    )
    cli.run(main)
