"""Trainings in processes of their own, what can go wrong with them, and what they leave behind.

Processes are struck by real signals and real limits at a chosen moment; files are damaged between
two starts. Nothing of the library is replaced: `train`'s `watch` and the data sets see the moments.
"""

import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import signal
import socket
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
import orbax.checkpoint as ocp
import sklearn.datasets
from etils import epath
from tqdm import tqdm

from batchgrow.config import ConfigDict
from batchgrow.run.timers import TIMING
from batchgrow.train import train
from configs import digits
from experiments import launch
from experiments.moments import Moments

TIME_LIMIT = 300  # seconds for one process, on a machine that is busy with other things
HEARTBEAT_SECONDS = 10  # of several processes, so that one that dies is noticed soon
PAUSE_SECONDS = 2.0
KILLED, FINISHED, FULL, REFUSED, PREEMPTED, GROWTH = -signal.SIGKILL, 0, 1, 2, 75, 76

# What strikes a running process, and the exit status that is right. The words after the first are
# the moment (`Moments`).
RUNNING = {
    "kill at an update": KILLED,
    "kill in an evaluation": KILLED,
    "kill in a compilation": KILLED,
    "kill in a checkpoint write": KILLED,
    "kill before the summary": KILLED,
    "SIGTERM at an update": PREEMPTED,
    "SIGTERM in an evaluation": PREEMPTED,
    "SIGTERM in a compilation": PREEMPTED,
    "SIGTERM in a checkpoint write": PREEMPTED,
    "SIGINT at an update": PREEMPTED,
    "full disk before a row": FULL,
    "full disk in a checkpoint write": FULL,
    "stop at a growth": GROWTH,
}
# What is done to the files of a stopped run.
DAMAGE = ("truncated checkpoint", "flipped bit in a checkpoint", "cut metrics.jsonl")
DAMAGED_CACHE = "damaged compilation cache"
CUT_JSON = "cut JSON of a finished run"
# Starts that must be refused, with the folder untouched.
SECOND = "hold at an update"  # and a second run on the folder meanwhile
CHANGED = ("changed config", "changed data set")
# Of two processes. The first is paused and then asked to stop; both must refuse the others.
PAUSE = "pause at an update"
DIFFERS, LOCAL = "one process differs", "a workdir for each process"
REFUSALS = (SECOND, *CHANGED)
PAIR_REFUSALS = (DIFFERS, LOCAL)
LAST = "kill before the summary"
JSON_FILES = ("config.json", "plan.json", "summary.json")
UPDATES = 4  # between two starts, or twice as many
# Fields that one process of two may have otherwise, and a part of the message.
DIFFERENCES: tuple[tuple[str, Any], ...] = (
    ("seed", 1),
    ("recipe.learning_rate", 0.1),
    ("recipe.num_epochs", 0.75),
    ("evaluate_every_epochs", 0.2),
    ("run.checkpoint_every_epochs", 0.2),
    ("run.updates_per_dispatch", 2),
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


@dataclass(frozen=True)
class Training:
    """Processes that train one run together.

    Attributes:
      processes: by their index.
      outputs: pipes with what each prints (a file might be full).
      workdir: the run folder.
    """

    processes: list[Any]
    outputs: list[Any]
    workdir: pathlib.Path


def start(workdir: pathlib.Path, fault: Fault = Fault(), num_processes: int = 1) -> Training:
    """Starts a training in processes of its own, in which `fault` will happen."""
    context: Any = multiprocessing.get_context("forkserver")
    # The slow imports once for all processes.
    context.set_forkserver_preload(["batchgrow.train", "experiments.launch", "configs.digits"])
    flags: list[str] = []
    if num_processes > 1:
        address = f"127.0.0.1:{free_port()}"
        flags = [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
    beside(workdir, "resumed").unlink(missing_ok=True)
    training = Training([], [], workdir)
    for index in range(num_processes):
        output, inlet = context.Pipe(duplex=False)
        one = [*flags, f"--process_id={index}"] if flags else []
        process = context.Process(target=_child, args=(str(workdir), fault, index, one, inlet))
        process.start()
        inlet.close()
        training.processes.append(process)
        training.outputs.append(output)
    return training


def statuses(training: Training) -> list[int]:
    """The exit status of each process, -9 if it was killed.

    Raises:
      TimeoutError: if one did not end; all are killed then.
    """
    end, codes, texts = time.monotonic() + TIME_LIMIT, [], []
    for process in training.processes:
        process.join(max(0.1, end - time.monotonic()))
        codes.append(process.exitcode)
    for process, output in zip(training.processes, training.outputs, strict=True):
        process.kill()
        process.join()
        with open(output.fileno(), closefd=False) as file:
            texts.append(file.read())
    beside(training.workdir, "said").write_text("".join(texts))
    if None in codes:
        raise TimeoutError(f"a training did not end within {TIME_LIMIT} s: {texts}")
    return codes


def status(training: Training) -> int:
    """The exit status of a training in one process."""
    (code,) = statuses(training)
    return code


def said(workdir: pathlib.Path) -> str:
    """What the last processes on this folder printed."""
    return beside(workdir, "said").read_text()


def errors(workdir: pathlib.Path) -> list[str]:
    """The error lines of the last processes on this folder."""
    return [line for line in said(workdir).splitlines() if line.startswith("error: ")]


def rows_told_lost(workdir: pathlib.Path) -> int:
    """How many rows the last start said that a damaged `metrics.jsonl` had lost."""
    told = re.search(r"(\d+) of the \d+ rows before the checkpoint are lost", said(workdir))
    return int(told[1]) if told else 0


def resumed_at(workdir: pathlib.Path) -> int | None:
    """`examples_seen` where the last start began to train; None if it did not get there."""
    path = beside(workdir, "resumed")
    return int(path.read_text()) if path.exists() else None


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """The checkpoints of a folder, oldest first."""
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.exists() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def final_arrays(workdir: pathlib.Path, whole: pathlib.Path) -> list[np.ndarray]:
    """Every array of the last checkpoint, by the tree of a run that nothing has damaged."""
    path, tree = (
        epath.Path(folder) / "checkpoints" / str(checkpoints(folder)[-1]) / "state"
        for folder in (workdir, whole)
    )
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    args = jax.tree.map(lambda _: as_numpy, handler.metadata(tree).tree)
    return jax.tree.leaves(handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args)))


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a folder without their timing."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMING} for x in lines]


def damage(workdir: pathlib.Path, kind: str, rng: random.Random) -> bool:
    """Damages a file of a stopped run; False if there is none to damage yet."""
    if kind == CUT_JSON:
        files = [workdir / name for name in JSON_FILES]
    elif kind == DAMAGED_CACHE:
        files = [path for path in cache(workdir).rglob("*") if not path.name.endswith("-atime")]
    elif kind == "cut metrics.jsonl":
        files = [workdir / "metrics.jsonl"]
    else:
        steps = checkpoints(workdir)
        newest = workdir / "checkpoints" / str(steps[-1]) if len(steps) > 1 else None
        files = sorted(newest.rglob("*")) if newest else []
    files = sorted(path for path in files if path.is_file() and path.stat().st_size > 1)
    if not files:
        return False
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    if kind.startswith("flipped") or (kind == DAMAGED_CACHE and rng.random() < 0.5):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        content = content[: rng.randrange(1, len(content))]
    path.write_bytes(content)
    return True


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p): p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}


def beside(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """A path next to a run folder."""
    return workdir.with_name(f"{workdir.name}.{name}")


def cache(workdir: pathlib.Path) -> pathlib.Path:
    """The compilation cache of all runs next to `workdir`."""
    return workdir.with_name("cache")


def free_port() -> int:
    """A TCP port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _child(workdir: str, fault: Fault, index: int, flags: Sequence[str], inlet: Any) -> None:
    """A process: the training command with its messages in a pipe and a fault to come."""
    folder = pathlib.Path(workdir)
    for stream in (1, 2):
        os.dup2(inlet.fileno(), stream)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a kill would leave behind
    launch.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    config = get_config()
    config.run.compilation_cache_dir = str(cache(folder))
    if flags:
        config.run.num_devices = None
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
        )
    if fault.process != index and fault.kind not in ("stop at a growth", *CHANGED):
        fault = Fault()
    _change(config, fault)
    sys.argv = ["soak", "--override_config", *flags]
    if fault.kind == "stop at a growth":
        sys.argv.append("--stop_at_growth")
    if fault.kind == LOCAL:
        folder = beside(folder, "local")

    def main(_: list[str]) -> int:
        experiment = launch.experiment_of(config)
        moments = Moments(experiment, partial(_strike, fault, folder), str(folder))
        outcome = train(moments.experiment, str(folder), override_config=True, watch=moments.watch)
        return launch.status_of(moments.experiment, str(folder), outcome)

    try:
        launch.launch(main)
    finally:
        # JAX does so at the exit of Python, which multiprocessing leaves out.
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()


def _change(config: ConfigDict, fault: Fault) -> None:
    """What is wrong before the start."""
    if fault.kind == "changed config":
        config.recipe.learning_rate = 0.01
    if fault.kind == DIFFERS:
        name, value = DIFFERENCES[int(fault.part * len(DIFFERENCES))]
        config.update_from_flattened_dict({name: value})
    if fault.kind == "changed data set":
        load_digits: Any = sklearn.datasets.load_digits

        def fewer() -> Any:
            data = load_digits()
            data.images, data.target = data.images[:-1], data.target[:-1]
            return data

        sklearn.datasets.load_digits = fewer


def _strike(fault: Fault, folder: pathlib.Path, moment: str, number: int) -> None:
    """Lets the fault happen if this is its moment."""
    what = fault.kind.removesuffix(moment).strip()
    nth = {"at an update": fault.nth * UPDATES, "before the summary": 1}.get(moment, fault.nth)
    if what == fault.kind or number != nth:
        return
    match what:
        case "kill" if fault.delay:
            threading.Timer(fault.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGTERM" | "SIGINT":
            os.kill(os.getpid(), signal.Signals[what])
        case "pause":
            later = f"sleep {PAUSE_SECONDS}; kill -CONT {os.getpid()}; kill -TERM {os.getpid()}"
            subprocess.Popen(["sh", "-c", later])
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hold":
            beside(folder, "paused").touch()
            time.sleep(TIME_LIMIT)
        case "full disk":
            # Beyond its limit a file takes no more, like a disk that is full.
            most = int(4000 * fault.part)
            if moment == "before a row":
                most = (folder / "metrics.jsonl").stat().st_size + int(300 * fault.part)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
