"""Which of XLA's CPU kernels the programs of a run use.

XLA:CPU has the convolutions and reductions of several libraries. oneDNN's convolutions beside
YNNPACK's reductions make updates of wide ResNets faster than XLA's default, and may make those of
other networks slower (docs/measurements.md). A long run therefore measures its own first update
with both.

The choice changes the last bits of a trajectory. The run folder keeps it for the rest of the run,
and a file beside the compilation cache keeps it for later runs of the same update. Equal commands
on one machine then have equal bits, whatever a second measurement would have found. Where nothing
can be kept, nothing is measured.
"""

import contextlib
import functools
import hashlib
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
from batchgrow.errors import first_line
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
MIN_UPDATES = 200  # likewise, of its first batch size: a measurement makes eight
MIN_GAIN = 1.02  # A choice must be faster than the default by this factor.
TURNS = 3
FOLDER = "batchgrow_kernels"


def available(mesh: Mesh) -> tuple[str, ...]:
    """The names of the kernels that can be compiled for these devices, the default first."""
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if mesh.devices.flat[0].platform != "cpu" or not is_x86 or version < (0, 12):
        return (DEFAULT,)
    return tuple(name for name in OPTIONS if _are_known(name))


@functools.cache
def _are_known(name: str) -> bool:
    """Whether this version of XLA knows the options of these kernels."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=OPTIONS[name])
    except jax.errors.JaxRuntimeError as error:
        log.info("no %s kernels: %s", name, first_line(error))
        return False
    return True


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
    num_examples = experiment.plan.end_examples
    if num_examples < MIN_UPDATES * experiment.plan.recipe.batch_size:
        return False
    try:
        flops = training_flops(experiment.task, experiment.train_data.example)
    except Exception as error:  # Outside of an update a task may lack what it uses.
        log.info("operations are not counted: %s", first_line(error))
        return False
    return flops * num_examples >= MIN_FLOPS


def fastest(calls: Mapping[str, Callable[[], None]]) -> str:
    """Returns the name of the fastest call; the default unless another is clearly faster.

    The calls take turns.

    Args:
      calls: by name of the kernels, `DEFAULT` among them. Each was made once before, since a first
        call takes longer.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: median(found) for name, found in seconds.items()}
    log.info("seconds of an update by kernels: %s", medians)
    best = min(medians, key=lambda name: medians[name])
    return best if medians[best] * MIN_GAIN <= medians[DEFAULT] else DEFAULT


class Memory:
    """The choices that were made on this machine, each in a file beside the compilation cache.

    Without a local folder that can be written, nothing is kept, and `is_writable` is False.

    Args:
      folder: of the cache, as `compile.enable_compilation_cache` returns it.
    """

    def __init__(self, folder: str):
        self._folder = pathlib.Path(folder) / FOLDER if folder and "://" not in folder else None

    def is_writable(self) -> bool:
        """Whether a choice can be kept."""
        try:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return self._folder is not None and os.access(self._folder, os.W_OK)

    def find(self, key: str) -> str | None:
        """Returns the choice for an update: None if there is none, the default if it is unknown."""
        path = self._folder / key if self._folder is not None else None
        try:
            name = path.read_text() if path is not None and path.exists() else None
        except (OSError, ValueError):
            name = DEFAULT
        return name if name is None or name in OPTIONS else DEFAULT

    def keep(self, key: str, name: str) -> str:
        """Keeps a choice, unless another run has kept one for the same update meanwhile.

        Returns the choice that is kept; the default if none can be.
        """
        if self._folder is None:
            return DEFAULT
        new = self._folder / f"{key}.{os.getpid()}"
        try:
            new.write_text(name)
            with contextlib.suppress(FileExistsError):
                os.link(new, self._folder / key)  # whole, or not at all
            new.unlink()
        except OSError as error:
            log.warning("%s: the choice of kernels is not kept: %s", self._folder, error)
            return DEFAULT
        return self.find(key) or DEFAULT


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
