"""Which of XLA's CPU kernels the updates of a run use.

XLA:CPU has the convolutions and reductions of several libraries. oneDNN's convolutions beside
YNNPACK's reductions make updates of wide ResNets faster than XLA's default, and may make those of
other networks slower (docs/measurements.md). A long run therefore measures its own first update
with both.

The choice changes the last bits of a trajectory. The run folder keeps it for the rest of the run,
and a file beside the compilation cache keeps it for later runs of the same update. Equal commands
on one machine then have equal bits, whatever a second measurement would have found.
"""

import hashlib
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
from jax.sharding import Mesh

from batchgrow.cost import training_flops
from batchgrow.experiment import Experiment

log = logging.getLogger(__name__)

DEFAULT = "xla"
# The options that an update is compiled with. oneDNN's executables cannot be cached.
OPTIONS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "onednn": {
        "xla_cpu_experimental_onednn_custom_call": True,
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    },
}
OWN_CHOICE = "xla_cpu_experimental"  # in XLA_FLAGS: the user has chosen
MIN_FLOPS = 1e14  # of a run that is worth a measurement: ten minutes of two cores
MIN_GAIN = 1.02  # A choice must be faster than the default by this factor.
TURNS = 3
FILE = "batchgrow_kernels.json"


def available(mesh: Mesh) -> tuple[str, ...]:
    """The names of the kernels that can be compiled for these devices, the default first."""
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    is_here = mesh.devices.flat[0].platform == "cpu" and is_x86 and version >= (0, 12)
    return tuple(OPTIONS) if is_here else (DEFAULT,)


def check(name: str, mesh: Mesh) -> None:
    """Refuses kernels that these devices do not have.

    Args:
      name: a key of `OPTIONS`, or "auto".
      mesh: the devices.

    Raises:
      ValueError: if they do not have them.
    """
    if name != "auto" and name not in available(mesh):
        raise ValueError(
            f"run.cpu_kernels {name!r} needs an x86 CPU and jax 0.12 or newer; here is jax "
            f'{jax.__version__} on {mesh.devices.flat[0].platform}; take "auto" or {DEFAULT!r}'
        )


def is_worth_measuring(experiment: Experiment, mesh: Mesh) -> bool:
    """Whether there is a choice, and the run is long enough to repay its measurement.

    Several processes do not measure: each of them could find something else.
    """
    if len(available(mesh)) == 1 or jax.process_count() > 1:
        return False
    if OWN_CHOICE in os.environ.get("XLA_FLAGS", ""):
        return False
    flops = training_flops(experiment.task, experiment.train_data.example)
    return flops * experiment.plan.end_examples >= MIN_FLOPS


def fastest(calls: Mapping[str, Callable[[], None]]) -> str:
    """Returns the name of the fastest call; the default unless another is clearly faster.

    The calls take turns, after one turn to warm up.

    Args:
      calls: by name of the kernels, `DEFAULT` among them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 + TURNS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: median(found) for name, found in seconds.items()}
    log.info("seconds of an update by kernels: %s", medians)
    best = min(medians, key=lambda name: medians[name])
    return best if medians[best] * MIN_GAIN <= medians[DEFAULT] else DEFAULT


class Memory:
    """The choices that were made on this machine, in a file beside the compilation cache.

    Args:
      folder: of the cache, where `compile.enable_compilation_cache` keeps it. Nothing is kept if it
        is "" or on an object store.
    """

    def __init__(self, folder: str):
        is_local = folder and "://" not in folder
        self._path = pathlib.Path(folder) / FILE if is_local else None

    def find(self, key: str) -> str | None:
        """Returns the choice for an update; None if there is none, or it cannot be read."""
        name = self._read().get(key)
        return name if isinstance(name, str) and name in OPTIONS else None

    def keep(self, key: str, name: str) -> None:
        """Keeps a choice. A file that cannot be written is warned of."""
        if self._path is None:
            return
        text = json.dumps({**self._read(), key: name}, indent=2)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(f".{os.getpid()}")
            new.write_text(text + "\n")
            new.replace(self._path)
        except OSError as error:
            log.warning("%s: the choice of kernels is not kept: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text()) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def key_of(lowered: Any, mesh: Mesh) -> str:
    """The key of an update in `Memory`: its program, the version of XLA, and the machine."""
    import jaxlib.version

    facts = (lowered.as_text(), jaxlib.version.__version__, mesh.size, os.cpu_count(), _cpu())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _cpu() -> str:
    """The kind of CPU."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    described = ("vendor_id", "cpu family", "model\t", "model name", "stepping", "flags")
    return "\n".join(sorted({line for line in lines if line.startswith(described)}))
