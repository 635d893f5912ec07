"""Run the benchmarks with their peers, and write a page with the tables.

    python -m experiments.bench_all --out=DIR [--data_dir=DIR] [--minutes=60]

Each result is kept in --out with the device, the versions and its command; `tables.md` there shows
all of them. What is kept is not measured again. PyTorch is measured where it is installed, the
input pipeline where --data_dir has ImageNet or generated pictures (see docs/imagenet.md), and
compiled programs where libtpu is installed.
"""

import importlib.util
import pathlib

from absl import flags
from etils import epath

from experiments import cli, recording
from experiments.recording import Measurement
from experiments.result_files import check_writable

_MINUTES = flags.DEFINE_float("minutes", 60.0, "When to stop.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the results (default: experiments/results/DEVICE, where some are kept)."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Of `bench_input`.")


def measurements(on_cpu: bool) -> list[Measurement]:
    """The benchmarks of this machine: small ones on a CPU."""
    dtype = "--dtype=float32" if on_cpu else "--dtype=bfloat16"
    torch = recording.torch_flags()
    growth = "--depth=10 --updates=8" if on_cpu else "--width=4"
    cifar10 = "--batch_sizes=128,640 --updates_per_dispatch=1 --seconds=12" if on_cpu else ""
    imagenet = "--models=resnet18 --image_size=64 --batch_sizes=32,64" if on_cpu else ""
    commands = {
        "bench_step": [dtype],
        "bench_growth": [dtype, "--batch_size=128", "--factor=5", *growth.split()],
        "bench_cifar10": [dtype, *torch, *cifar10.split()],
        "bench_imagenet": [dtype, *imagenet.split()],
    }
    if _DATA_DIR.value is not None:
        tf = ["--tf"] if importlib.util.find_spec("tensorflow") else []
        commands["bench_input"] = [f"--data_dir={_DATA_DIR.value}", *tf]
    commands["bench_scaling"] = [dtype, *(["--depth=10", "--seconds=3"] if on_cpu else [])]
    if importlib.util.find_spec("libtpu"):
        commands["bench_compiled"] = []
    return [Measurement(name, (name, *rest, "--json")) for name, rest in commands.items()]


def main(_: list[str]) -> int:
    """Measures what is missing; the exit status is that of `recording.record`."""
    of_device = recording.folder_of_device()
    folder = pathlib.Path(_OUT.value) if _OUT.value else of_device
    check_writable(epath.Path(folder / "tables.md"))
    return recording.record(measurements(of_device.name == "cpu"), folder, _MINUTES.value)


if __name__ == "__main__":
    cli.run(main)
