"""A training process in which one thing goes wrong, and the data that it trains on.

Processes are struck by real signals and real limits at a chosen moment. Nothing of the library is
replaced: `train`'s `watch` and the data sets see the moments.
"""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from batchgrow.config import ConfigDict
from batchgrow.data.catalog import open_dataset
from batchgrow.data.datasets import ArrayDataset
from batchgrow.train import train
from configs import digits
from experiments import launch
from experiments.moments import Moments

TIME_LIMIT = 300  # seconds for one process, on a machine that is busy with other things
HEARTBEAT_SECONDS = 10  # of several processes, so that one that dies is noticed soon
PAUSE_SECONDS = 2.0
UPDATES = 4  # between two starts, or twice as many
# Moments that come once.
AT_END = ("in the last checkpoint write", "before the summary", "after the summary")
GROWS = "stop at a growth"
CHANGED_CONFIG, CHANGED_DATA = "changed config", "changed data set"
DIFFERS, LOCAL = "one process differs", "a workdir for each process"
# Fields that one process of two may have otherwise. "data" stands for its examples.
DIFFERENCES: tuple[tuple[str, Any], ...] = (
    ("seed", 1),
    ("recipe.learning_rate", 0.1),
    ("recipe.num_epochs", 0.75),
    ("evaluate_every_epochs", 0.2),
    ("run.checkpoint_every_epochs", 0.2),
    ("run.updates_per_dispatch", 2),
    ("data", None),
)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong in a process.

    Attributes:
      kind: as above, or "" for nothing.
      nth: the moment's number since the start, from 1.
      delay: seconds after the moment (kills only).
      part: in 0..1, how much of a write still succeeds; which field differs.
      process: of several, the one that is struck.
    """

    kind: str = ""
    nth: int = 1
    delay: float = 0.0
    part: float = 0.0
    process: int = 0


NOTHING = Fault()


def get_config() -> ConfigDict:
    """Digits with two batch sizes, 36 updates: seconds, most of them spent on starting."""
    config = digits.get_config("increasing_batch")
    config.model.channels = 2
    config.recipe.num_epochs = 0.5
    config.recipe.boundaries_epochs = (0.3,)
    config.recipe.factor = 0.5
    config.plan.max_batch_size = 32
    config.log_every_epochs = 0.05
    config.evaluate_every_epochs = 0.1
    config.run.checkpoint_every_epochs = 0.1
    config.run.num_devices = 1
    config.run.updates_per_dispatch = 1  # so that any update can be the last one
    config.run.eval_batch_size = 360
    return config


def beside(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """A path next to a run folder."""
    return workdir.with_name(f"{workdir.name}.{name}")


def cache(workdir: pathlib.Path) -> pathlib.Path:
    """The compilation cache of all runs next to `workdir`."""
    return workdir.with_name("cache")


def digits_file(workdir: pathlib.Path) -> pathlib.Path:
    """The examples of all runs next to `workdir`."""
    return workdir.with_name("digits.npz")


# Of this process.
_fault, _folder = NOTHING, pathlib.Path()


def read_digits(split: str) -> ArrayDataset:
    """The data set of the processes: the digits of a file, which may be damaged or differ."""
    _strike(_fault, _folder, "in a preparation of data", ("train", "test").index(split) + 1)
    data: Any = open_dataset(f"npz:{digits_file(_folder)}", split)
    arrays = data.arrays
    if _fault.kind == CHANGED_DATA:
        arrays = {name: array[:-1] for name, array in arrays.items()}
    if _fault.kind == DIFFERS and _difference(_fault)[0] == "data":
        arrays |= {"label": np.roll(arrays["label"], 1)}
    return ArrayDataset(arrays)


def run(workdir: str, fault: Fault, index: int, flags: Sequence[str], inlet: Any) -> None:
    """A process: the training command with a fault to come.

    Args:
      workdir: the run folder.
      fault: what happens.
      index: which of the processes this is.
      flags: of the connection to the others.
      inlet: the end of a pipe that takes the messages.
    """
    global _fault, _folder
    folder = _folder = pathlib.Path(workdir)
    for stream in (1, 2):
        os.dup2(inlet.fileno(), stream)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a kill would leave behind
    launch.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    config = get_config()
    config.data.name = "experiments.struck:read_digits"
    config.run.compilation_cache_dir = str(cache(folder))
    if flags:
        config.run.num_devices = None
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
        )
    if fault.process != index and fault.kind not in (GROWS, CHANGED_CONFIG, CHANGED_DATA):
        fault = NOTHING
    _fault = fault
    _change(config, fault)
    sys.argv = ["soak", "--override_config", *flags]
    if fault.kind == GROWS:
        sys.argv.append("--stop_at_growth")
    if fault.kind == LOCAL:
        folder = beside(folder, "local")

    def main(_: list[str]) -> int:
        experiment = launch.experiment_of(config)
        moments = Moments(experiment, partial(_strike, fault, folder), str(folder))
        outcome = train(moments.experiment, str(folder), override_config=True, watch=moments.watch)
        _strike(fault, folder, "after the summary", 1)
        return launch.status_of(moments.experiment, str(folder), outcome)

    try:
        launch.launch(main)
    finally:
        # JAX does so at the exit of Python, which multiprocessing leaves out.
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()


def _change(config: ConfigDict, fault: Fault) -> None:
    """What is wrong with the config of this process."""
    if fault.kind == CHANGED_CONFIG:
        config.recipe.learning_rate = 0.01
    if fault.kind == DIFFERS and _difference(fault)[0] != "data":
        config.update_from_flattened_dict(dict([_difference(fault)]))


def _difference(fault: Fault) -> tuple[str, Any]:
    return DIFFERENCES[int(fault.part * len(DIFFERENCES))]


def _strike(fault: Fault, folder: pathlib.Path, moment: str, number: int) -> None:
    """Lets the fault happen if this is its moment."""
    what = fault.kind.removesuffix(moment).strip()
    nth = {"at an update": fault.nth * UPDATES, **dict.fromkeys(AT_END, 1)}.get(moment, fault.nth)
    if what == fault.kind or number != nth:
        return
    match what:
        case "kill" if fault.delay:
            threading.Timer(fault.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGTERM" | "SIGINT":
            os.kill(os.getpid(), signal.Signals[what])
        case "SIGTERM and a wait":  # JAX passes it on within a second.
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PAUSE_SECONDS)
        case "pause":
            later = f"sleep {PAUSE_SECONDS}; kill -TERM {os.getpid()}; kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", later])
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hold":
            handler: Any = signal.getsignal(signal.SIGINT)

            def tell(number: int, frame: Any) -> None:
                handler(number, frame)
                beside(folder, "interrupted").touch()

            signal.signal(signal.SIGINT, tell)
            beside(folder, "paused").touch()
            time.sleep(TIME_LIMIT)  # goes on after a signal that was handled
        case "full disk":
            # Beyond its limit a file takes no more, like a disk that is full.
            most = int(4000 * fault.part)
            if moment == "before a row":
                most = (folder / "metrics.jsonl").stat().st_size + int(300 * fault.part)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
