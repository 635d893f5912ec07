"""How much memory and time the run of a config takes on a target, by what the compiler says."""

import importlib.util
import math
import multiprocessing
import os
import pathlib
import pickle
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from typing import Any

from batchgrow.config import ConfigDict, check_layouts, make_experiment, make_plan
from batchgrow.experiment import Experiment
from batchgrow.plan import FixedPlan, Plan, decay
from batchgrow.targets.compile import compile_update, compiler_versions
from batchgrow.targets.machines import Target, parse
from batchgrow.text_table import text_table

GIB, MIB = 2**30, 2**20
CACHE_DIR = "~/.cache/batchgrow/targets"


def forecast(
    config: ConfigDict,
    target: Target,
    num_examples: int,
    *,
    num_processes: int | None = None,
    compares: bool = True,
    cache_dir: str = "",
) -> dict[str, Any]:
    """Compiles every batch size of a config's plan for a target, each in a process of its own.

    Args:
      config: of the run. Examples that workers would decode need not be there.
      target: where it would run.
      num_examples: N, the size of the training set.
      num_processes: how many compile at the same time; None: one for every two cores.
      compares: whether the batch sizes of the recipe without growth are compiled too.
      cache_dir: where what the compiler said is kept; "" for `CACHE_DIR`.

    Returns:
      Plain values: `updates` as from `compile_update`, by batch size; `segments` of the plan, with
      `seconds`; the `seconds` of the run and `decay_seconds` of the recipe without growth on the
      same target; and the `versions` of the compiler. Seconds are None where they are not
      estimated or not asked for.

    Raises:
      ValueError: if the compiler for the target is not installed, or a batch size cannot be laid
        out on it.
      MemoryError: if a process that compiles was killed, as the system does where memory ends.
    """
    check_compiler(target)
    plan = make_plan(config, num_examples)
    multiple = config.plan.batch_multiple or config.ghost_batch_size or 1
    check_layouts(plan, target.num_devices, config)
    recipe_plan: Plan | None = None
    if compares:
        recipe_plan = decay(plan.recipe, batch_multiple=multiple, exponent=config.plan.exponent)
    try:
        if recipe_plan is not None:
            check_layouts(recipe_plan, target.num_devices, config)
    except ValueError:  # a plan that starts with a larger batch
        recipe_plan = None
    plans = [x for x in (plan, recipe_plan) if x is not None]
    sizes = list(dict.fromkeys(size for x in plans for size in x.batch_sizes()))
    cache = str(pathlib.Path(cache_dir or CACHE_DIR).expanduser())
    compile_one = partial(_compile_one, pickle.dumps(config), target.name, cache)
    os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes: no device is used
    workers = min(len(sizes), num_processes or max(1, (os.cpu_count() or 1) // 2))
    try:
        with make_pool(workers) as pool:
            updates = dict(zip(sizes, pool.map(compile_one, sizes), strict=True))
    except BrokenProcessPool as error:
        raise MemoryError(
            f"--target={target.name}: a process that compiles was killed, most likely because "
            "memory ended; take --compile_processes=1, or a machine with more memory"
        ) from error
    return {
        "target": target.name,
        "updates": updates,
        "segments": _segments(plan, updates),
        "seconds": _seconds(plan, updates),
        "decay_seconds": recipe_plan and _seconds(recipe_plan, updates),
        "versions": compiler_versions(target),
    }


def check_compiler(target: Target) -> None:
    """Checks that the compiler for a target is installed.

    Raises:
      ValueError: if it is not; the message says what to install.
    """
    modules, extra = {
        "tpu": (("libtpu",), "tpu"),
        "cuda": (("jax_cuda12_plugin", "jax_cuda13_plugin"), "cuda"),
    }[target.generation.platform]
    if not any(importlib.util.find_spec(module) for module in modules):
        raise ValueError(
            f"--target={target.name}: the compiler for it is not installed; pip install -e "
            f"'.[{extra}]' (in a virtual environment of its own, if you like)"
        )


def make_pool(num_processes: int) -> ProcessPoolExecutor:
    """Returns processes that compile. They end when this one is killed."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_processes, context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _compile_one(config: bytes, target: str, cache_dir: str, batch_size: int) -> dict[str, Any]:
    return compile_update(_experiment(config), parse(target), batch_size, pathlib.Path(cache_dir))


@lru_cache(maxsize=1)  # in a process that compiles several sizes
def _experiment(config: bytes) -> Experiment:
    return make_experiment(pickle.loads(config), to_read=False)


def _segments(plan: Plan, updates: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for segment in plan.known():
        seconds = updates[segment.batch_size].get("seconds")
        found.append(
            {
                "batch_size": segment.batch_size,
                "num_updates": segment.num_updates,
                "seconds": seconds and segment.num_updates * seconds,
            }
        )
    return found


def _seconds(plan: Plan, updates: Mapping[int, Mapping[str, Any]]) -> float | None:
    parts = [segment["seconds"] for segment in _segments(plan, updates)]
    is_known = isinstance(plan, FixedPlan) and None not in parts
    return math.fsum(parts) if is_known else None


def table(found: Mapping[str, Any]) -> str:
    """Returns a forecast as text, one line for each segment."""
    rows = [
        ["segment", "batch", "layout", "GiB", "free", "TFLOP", "collectives", "ms", "of peak"]
        + ["fed/host", "updates", "hours"]
    ]
    segments = found["segments"] or [
        {"batch_size": size, "num_updates": None, "seconds": None} for size in found["updates"]
    ]
    for index, segment in enumerate(segments):
        update = found["updates"][segment["batch_size"]]
        if "error" in update:
            rows.append([str(index), str(update["batch_size"]), "none fits", *[""] * 9])
            continue
        sent = update["collectives"]
        hours = segment["seconds"] and segment["seconds"] / 3600
        rows.append(
            [
                str(index),
                str(update["batch_size"]),
                f"{update['num_microbatches']} x {update['microbatch_size']}",
                f"{update['memory_needed'] / GIB:.2f}",
                f"{(update['memory_limit'] - update['memory_needed']) / GIB:.2f}",
                f"{update['flops'] / 1e12:.4g}",
                f"{sum(x['count'] for x in sent)}, {sum(x['bytes'] for x in sent) / MIB:.4g} MiB",
                _or_dash(update["seconds"] and 1e3 * update["seconds"], ".4g"),
                _or_dash(update["share_of_peak"], ".0%"),
                _or_dash(update["needed_per_host"], ",.0f"),
                _or_dash(segment["num_updates"], ","),
                _or_dash(hours, ".3g"),
            ]
        )
    return text_table(rows)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def notes(found: Mapping[str, Any]) -> list[str]:
    """Returns lines that say what is estimated, by whom, and what does not fit."""
    target = parse(found["target"])
    generation, updates = target.generation, found["updates"].values()
    devices = next(iter(updates))["num_devices"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{target.name}: {devices} devices {generation.device_kind}, "
        f"{generation.memory / GIB:.2f} GiB each, {generation.devices_per_host} a host "
        f"({generation.source})",
        f"compiled by {versions}; nothing was run. Layout: micro-batches x examples of one on a "
        "device, as a run there chooses them",
        "GiB: what the compiler reserves on each device for one update and its arguments; the "
        "evaluation and the executable of the next batch size need more",
        "TFLOP: three forward passes of every example, as XLA counts the forward pass",
        "collectives: calls in one update, and the bytes of their results on a device",
    ]
    if generation.clock:
        lines.append(
            f"ms: the compiler's estimate in cycles at {generation.clock / 1e9:.4g} GHz, and the "
            f"bytes of the collectives at {(generation.bandwidth or 0) / 1e9:.4g} GB/s of the data "
            "sheet, not overlapped; not a measured time. hours: these updates alone, without "
            "input, evaluation, checkpoints and compilation"
        )
    else:
        lines.append("this compiler estimates no time; --device and --utilisation do")
    for update in updates:
        lines += _what_does_not_fit(update)
    if found["seconds"] and found["decay_seconds"]:
        ours, decays = found["seconds"], found["decay_seconds"]
        lines.append(
            f"the run: {ours / 3600:.3g} hours; the recipe without growth: {decays / 3600:.3g} "
            f"hours ({decays / ours:.2f} times as long)"
        )
    return lines


def _what_does_not_fit(update: Mapping[str, Any]) -> list[str]:
    if "error" in update:
        return [update["error"]]
    if not update["too_large"]:
        return []
    tried = ", ".join(
        f"{x['num_microbatches']} x {x['microbatch_size']}"
        + (f" ({x['needs'] / GIB:.1f} GiB)" if x["needs"] else "")
        for x in update["too_large"]
    )
    return [
        f"batch size {update['batch_size']}: {tried} would not fit; the nearest that does is "
        f"{update['num_microbatches']} x {update['microbatch_size']}"
    ]
