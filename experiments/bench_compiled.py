"""Compare the compiler's cycles, memory and collectives of our update with hand-written Flax steps.

    python -m experiments.bench_compiled [--target=v5e:2x2] [--json]

Nothing runs: the TPU compiler compiles both for a slice that is not here (pip install -e '.[tpu]')
and notes how many cycles it estimates for each instruction, collectives excepted. The sum is the
same on every machine, so no other program disturbs this benchmark. It is no measured time.
`linen_peers` says what the others do. Ours gathers, augments and normalises images on the device
too, and sums its metrics.
"""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from batchgrow import config as library
from batchgrow.devices import memory_needed
from batchgrow.errors import first_line
from batchgrow.experiment import Experiment
from batchgrow.run import environment
from batchgrow.targets import forecast, program
from batchgrow.targets.compile import Compiled, Compiler, compile_update, compiler_versions
from batchgrow.targets.machines import mesh_of, parse
from configs import cifar10, imagenet_resnet50, shakespeare
from experiments import benchmark, linen_peers, synthetic

_TARGET = flags.DEFINE_string("target", "v5e:2x2", "As of `experiments.plan`.")
_MODELS = flags.DEFINE_list("models", ["wide_resnet", "transformer", "resnet50"], "Of those.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", [], "Of each device; none for those of the model.")
_CACHE = flags.DEFINE_string("cache_dir", "", "As of `forecast`; what is there is not compiled.")

PER_DEVICE = {
    "resnet50": (32, 64, 128, 256),
    "wide_resnet": (8, 32, 128, 256, 512, 1024),
    "transformer": (8, 32, 128),
}


def main() -> str:
    """The table, a row for each model and batch size."""
    target = parse(_TARGET.value)
    forecast.check_compiler(target)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for model in _MODELS.value:
        if model not in PER_DEVICE:
            raise ValueError(f"--models={model}: choose of {', '.join(PER_DEVICE)}")
        for per_device in map(int, _BATCH_SIZES.value or PER_DEVICE[model]):
            rows.append(bench(model, per_device))
    notes = [f"{target.name}; cycles: the compiler's estimate for one update, not a measured time"]
    devices = {"kind": target.generation.device_kind, "count": mesh_of(target).size}
    versions = environment.versions() | compiler_versions(target)
    return benchmark.report("bench_compiled", rows, notes, devices=devices, versions=versions)


def bench(name: str, per_device: int) -> dict[str, Any]:
    """One row: ours, theirs, and the ratio of their cycles. None stands for what does not fit."""
    target = parse(_TARGET.value)
    mesh, cache = mesh_of(target), pathlib.Path(_CACHE.value or forecast.CACHE_DIR).expanduser()
    experiment, lower = MAKE[name](per_device, per_device * mesh.size)
    ours = compile_update(experiment, target, per_device * mesh.size, cache)
    about = f"--target={target.name}, {name} at {per_device} a device"
    if "error" in ours:
        print(f"{about}: {ours['error']}", file=sys.stderr, flush=True)
    elif not ours["cycles"]:
        raise ValueError(f"{about}: the compiler for {target.name} estimates no cycles")
    theirs: Compiled | None = None
    try:
        theirs = Compiler(target, cache)(lower(mesh))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"{about}: the peer does not fit: {first_line(error)}", file=sys.stderr, flush=True)
    our_cycles = ours.get("cycles")
    their_cycles = theirs and sum(program.cycles(theirs.text))
    return {
        "model": name,
        "per_device": per_device,
        "num_microbatches": ours.get("num_microbatches"),
        "ours_cycles": our_cycles and round(our_cycles),
        "peer_cycles": their_cycles,
        "ratio": our_cycles / their_cycles if our_cycles and their_cycles else None,
        "ours_mib": ours["memory_needed"] / 2**20 if our_cycles else None,
        "peer_mib": theirs and (memory_needed(theirs) or 0) / 2**20,
        **_sent("ours", ours.get("collectives")),
        **_sent("peer", theirs and program.collectives(theirs.text)),
    }


def _resnet50(per_device: int, batch_size: int) -> tuple[Experiment, Callable]:
    config = imagenet_resnet50.get_config("decaying_lr")
    experiment = library.make_experiment(config, to_read=False)
    return experiment, lambda mesh: linen_peers.resnet50(per_device, mesh)


def _wide_resnet(per_device: int, batch_size: int) -> tuple[Experiment, Callable]:
    config = cifar10.get_config("decaying_lr")
    config.ghost_batch_size = min(config.ghost_batch_size, per_device)
    experiment = synthetic.from_config(config, 32, batch_size, 50_000)
    return experiment, lambda mesh: linen_peers.wide_resnet(per_device, mesh)


def _transformer(per_device: int, batch_size: int) -> tuple[Experiment, Callable]:
    config = shakespeare.get_config("decaying_lr,python_topics")
    experiment = library.make_experiment(config)
    model: Any = experiment.task.model  # type: ignore
    return experiment, lambda mesh: linen_peers.transformer(model, per_device, mesh)


MAKE = {"resnet50": _resnet50, "wide_resnet": _wide_resnet, "transformer": _transformer}


def _sent(who: str, collectives: Any) -> dict[str, Any]:
    known = collectives is not None
    return {
        f"{who}_collectives": sum(x["count"] for x in collectives) if known else None,
        f"{who}_sent_mib": sum(x["bytes"] for x in collectives) / 2**20 if known else None,
    }


if __name__ == "__main__":
    benchmark.run(main)
