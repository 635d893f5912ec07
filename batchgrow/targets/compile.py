"""Compiles the updates of an experiment for devices that are not here, as a run there would."""

import gzip
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import jax

from batchgrow.cost import training_flops
from batchgrow.devices import memory_needed, peak_flops
from batchgrow.engine import Engine
from batchgrow.experiment import Experiment
from batchgrow.layout import Layout
from batchgrow.plan.time_to_train import allreduce_seconds
from batchgrow.run import environment
from batchgrow.targets import program
from batchgrow.targets.machines import Target, mesh_of

MEMORY = ("argument", "output", "alias", "temp", "generated_code")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # environment variables that the compilers read
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program. It takes the place of the executable, which is dropped.

    Attributes:
      memory: bytes on each device: of arguments, output, both together, temporaries and code.
      text: the program, as `program` reads it.
      seconds: how long it took to compile.
      refusal: why the compiler refused; the other fields are empty then.
    """

    memory: Mapping[str, int] | None = None
    text: str = ""
    seconds: float = 0.0
    refusal: str = ""

    def memory_analysis(self) -> Any:
        """As that of an executable."""
        if self.memory is None:
            return None
        return SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in self.memory.items()})


class Compiler:
    """Compiles lowered updates, and remembers what the compiler said of each.

    Args:
      target: what they are lowered for.
      cache_dir: where it remembers.
    """

    def __init__(self, target: Target, cache_dir: pathlib.Path):
        self._target, self._cache_dir = target, cache_dir

    def __call__(self, lowered: Any) -> Compiled:
        """Compiles, unless that was done before.

        If the result cannot be written, it is returned all the same.

        Raises:
          JaxRuntimeError: if the compiler refuses the program because it needs too much memory.
        """
        about = [self._target.name, compiler_versions(self._target), lowered.as_text()]
        flags = {name: os.environ[name] for name in FLAGS if os.environ.get(name)}
        about += [flags] if flags else []
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        path = self._cache_dir / f"{key}.json.gz"
        if os.path.exists(path):  # False too where the folder cannot be read
            found = Compiled(**json.loads(gzip.decompress(path.read_bytes())))
        else:
            found = _compile(lowered)
            try:
                self._cache_dir.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(f".{os.getpid()}")
                temporary.write_bytes(gzip.compress(json.dumps(asdict(found)).encode()))
                temporary.replace(path)
            except OSError as error:
                log.warning("what the compiler said is not kept: %s", error)
        if found.refusal:
            raise jax.errors.JaxRuntimeError(found.refusal)
        return found


def _compile(lowered: Any) -> Compiled:
    started = time.perf_counter()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(seconds=time.perf_counter() - started, refusal=str(error))
    analysis = executable.memory_analysis()
    return Compiled(
        memory=analysis and {x: getattr(analysis, f"{x}_size_in_bytes") for x in MEMORY},
        text=executable.as_text(),
        seconds=time.perf_counter() - started,
    )


def compiler_versions(target: Target) -> dict[str, str]:
    """Versions of the packages that decide how a program is compiled."""
    packages = ["jax", "jaxlib", "flax", "optax"]
    if target.generation.platform == "tpu":
        packages.append("libtpu")
    else:
        plugins = ("jax-cuda12-plugin", "jax-cuda13-plugin")
        packages += [x for x in plugins if environment.version(x) != "not installed"]
    return {name: environment.version(name) for name in packages}


def compile_update(
    experiment: Experiment, target: Target, batch_size: int, cache_dir: pathlib.Path
) -> dict[str, Any]:
    """Compiles the update of a batch size as a run on the target would; returns what it needs.

    Returns:
      Plain values: the layout, `memory_needed` and `memory_limit` in bytes of each device, `flops`
      of one update on all devices, `collectives`, `kernels` (as in `program`), and the estimated
      `cycles` and `seconds` of one update, None where the compiler counts no cycles. It counts none
      for collectives:
      `collective_seconds`, a part of `seconds`, are their bytes at the bandwidth of the target, not
      overlapped. `too_large` has the layouts that were tried before. If none fits, `error` says so.

    Raises:
      ValueError: if the batch size cannot be laid out on the target.
    """
    mesh, generation = mesh_of(target), target.generation
    compiler = Compiler(target, cache_dir)
    row: dict[str, Any] = {
        "batch_size": batch_size,
        "num_devices": mesh.size,
        "memory_limit": generation.memory,
    }
    with Engine(experiment, mesh, generation.memory, compiler) as engine:
        try:
            fitted = engine.compiler.fit(batch_size)
        except MemoryError as error:
            return row | {"error": str(error)}
    compiled: Compiled = fitted.executable
    flops = batch_size * training_flops(experiment.task, experiment.train_data.example)
    collectives = program.collectives(compiled.text)
    row |= {
        **_facts_of(fitted.layout),
        "max_updates": fitted.max_updates,
        "memory_needed": memory_needed(compiled),
        "memory": compiled.memory,
        "too_large": [_facts_of(layout) | {"needs": need} for layout, need in fitted.too_large],
        "flops": flops,
        "collectives": collectives,
        "kernels": program.kernels(compiled.text),
        "collective_seconds": None,
        "cycles": None,
        "seconds": None,
        "share_of_peak": None,
        "examples_per_second": None,
        "needed_per_host": None,
        "compile_seconds": compiled.seconds,
    }
    once, each = program.cycles(compiled.text)
    cycles = each + once / fitted.max_updates
    if cycles and generation.clock and generation.bandwidth:
        sent = sum(x["bytes"] for x in collectives)
        network, bandwidth = generation.network, generation.bandwidth
        sending = allreduce_seconds(sent, mesh.size, bandwidth, 0.0, network)
        seconds = cycles / generation.clock + sending
        dtype = experiment.settings.get("model", {}).get("dtype", "float32")
        peak = peak_flops(generation.device_kind, dtype)
        hosts = max(1, mesh.size / generation.devices_per_host)
        row |= {
            "cycles": cycles,
            "collective_seconds": sending,
            "seconds": seconds,
            "share_of_peak": peak and flops / seconds / (peak * mesh.size),
            "examples_per_second": batch_size / seconds,
            "needed_per_host": batch_size / seconds / hosts,
        }
    return row


def _facts_of(layout: Layout) -> dict[str, int]:
    return {
        "num_microbatches": layout.num_microbatches,
        "microbatch_size": layout.microbatch_size,
    }
