"""A training in a process of its own, what can go wrong with it, and what it leaves behind.

Processes die where a call of the library is under way, by real signals and real limits; files are
damaged in between.
"""

import json
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import sklearn.datasets
from etils import epath

from batchgrow import loop, runlog, train
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.config import Config
from batchgrow.run.progress import Progress
from configs import digits
from experiments import launch

TIME_LIMIT = 300  # seconds for one process, on a machine that is busy with other things
KILLED, FINISHED, FULL, REFUSED, PREEMPTED, PHASE_END = -signal.SIGKILL, 0, 1, 2, 75, 76

# What goes wrong, and the exit status that is right. The first group strikes a running process,
# the second is done to the folder of a stopped one, the third are starts that must be refused.
RUNNING = {
    "kill -9 at an update": KILLED,
    "kill -9 in an evaluation": KILLED,
    "kill -9 in a checkpoint write": KILLED,
    "disk full while logging": FULL,
    "disk full while saving": FULL,
    "SIGTERM": PREEMPTED,
    "SIGINT": PREEMPTED,
    "stop at a phase end": PHASE_END,
    "kill -9 before the summary": KILLED,
}
DAMAGE = ("truncated checkpoint", "flipped bit in a checkpoint", "cut metrics.jsonl")
SECOND = "second run on the folder"
REFUSALS = (SECOND, "changed config", "changed data set")
LAST = "kill -9 before the summary"
CUT_JSON = "cut JSON of a finished run"
KINDS = (*RUNNING, *DAMAGE, *REFUSALS, CUT_JSON)
JSON_FILES = ("config.json", "plan.json", "summary.json")
UPDATES = 4  # between two starts, or twice as many


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong in a process.

    Attributes:
      kind: one of `KINDS`, or "" for nothing.
      nth: at which call of the function in question.
      delay: seconds into that call.
      part: in 0..1, how much of a write still succeeds.
    """

    kind: str = ""
    nth: int = 1
    delay: float = 0.0
    part: float = 0.0


def get_config() -> Config:
    """A training of digits in two phases, 36 updates: seconds, most of them spent on starting."""
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
    """A process that trains, and the pipe with what it says (a file might be full)."""

    process: Any
    output: Any
    workdir: pathlib.Path


def start(workdir: pathlib.Path, fault: Fault = Fault()) -> Training:
    """Starts a training in a process of its own, in which `fault` will happen."""
    context: Any = multiprocessing.get_context("forkserver")
    # The slow imports once for all processes.
    context.set_forkserver_preload(["batchgrow.train", "experiments.launch", "configs.digits"])
    output, inlet = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(str(workdir), fault, inlet))
    process.start()
    inlet.close()
    return Training(process, output, workdir)


def status(training: Training) -> int:
    """The exit status, -9 if it was killed; a training that does not end is killed."""
    training.process.join(TIME_LIMIT)
    code = training.process.exitcode
    training.process.kill()
    training.process.join()
    with open(training.output.fileno(), closefd=False) as output:
        beside(training.workdir, "said").write_text(output.read())
    if code is None:
        raise TimeoutError(f"a training did not end within {TIME_LIMIT} s")
    return code


def said(workdir: pathlib.Path) -> str:
    """What the last process on this folder printed."""
    return beside(workdir, "said").read_text()


def resumed_at(workdir: pathlib.Path) -> int | None:
    """`examples_seen` where the last process began to train; None if it did not get there."""
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
    """The rows of a folder without what the clock decides."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in runlog.TIMING} for x in lines]


def damage(workdir: pathlib.Path, kind: str, rng: random.Random) -> bool:
    """Damages a file of a stopped run; False if there is none to damage yet."""
    if kind == CUT_JSON:
        files = [workdir / name for name in JSON_FILES]
    elif kind == "cut metrics.jsonl":
        files = [workdir / "metrics.jsonl"]
    else:
        steps = checkpoints(workdir)
        newest = workdir / "checkpoints" / str(steps[-1]) if len(steps) > 1 else None
        files = sorted(newest.rglob("*")) if newest else []
    files = [path for path in files if path.is_file() and path.stat().st_size > 1]
    if not files:
        return False
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    if kind.startswith("flipped"):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        content = content[: rng.randrange(1, len(content))]
    path.write_bytes(content)
    return True


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p): p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}


def beside(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.{name}")


def _child(workdir: str, fault: Fault, inlet: Any) -> None:
    """A process: the training command with its messages in a pipe and a fault to come."""
    folder = pathlib.Path(workdir)
    for stream in (1, 2):
        os.dup2(inlet.fileno(), stream)
    beside(folder, "resumed").unlink(missing_ok=True)
    config = get_config()
    if fault.kind == "changed config":
        config.recipe.learning_rate = 0.01
    _arm(folder, fault)
    run_phases = train.run_phases

    def told(run: loop.Run, state: Any, examples_seen: int) -> loop.Outcome:
        beside(folder, "resumed").write_text(str(examples_seen))
        return run_phases(run, state, examples_seen)

    train.run_phases = told
    sys.argv = ["soak", "--override_config"]
    if fault.kind == "stop at a phase end":
        sys.argv.append("--stop_at_phase_end")
    launch.launch(lambda: launch.run(config, workdir))


def _arm(folder: pathlib.Path, fault: Fault) -> None:
    """Lets the fault happen at the nth call of what it is to strike."""

    kill = partial(os.kill, os.getpid(), signal.SIGKILL)

    def kill_soon() -> None:
        threading.Timer(fault.delay, kill).start()

    def limit(size: int) -> None:
        # Beyond its limit a file takes no more, like a disk that is full (EFBIG for ENOSPC).
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def limit_log() -> None:
        limit((folder / "metrics.jsonl").stat().st_size + int(300 * fault.part))

    def pause() -> None:
        beside(folder, "paused").touch()
        time.sleep(TIME_LIMIT)

    load_digits: Any = sklearn.datasets.load_digits

    def fewer() -> Any:
        data = load_digits()
        data.images, data.target = data.images[:-1], data.target[:-1]
        return data

    match fault.kind:
        case "kill -9 at an update":
            _before(Progress, "advance", fault.nth * UPDATES, kill)
        case "kill -9 in an evaluation":
            _before(loop, "evaluate", fault.nth, kill_soon)
        case "kill -9 in a checkpoint write":
            _before(Checkpoints, "save", fault.nth, kill_soon)
        case "kill -9 before the summary":
            _before(train, "summarise", 1, kill)
        case "disk full while logging":
            _before(runlog.RunLog, "write", fault.nth, limit_log)
        case "disk full while saving":
            _before(Checkpoints, "save", fault.nth, partial(limit, int(4000 * fault.part)))
        case "SIGTERM" | "SIGINT":
            send = partial(os.kill, os.getpid(), signal.Signals[fault.kind])
            _before(Progress, "advance", fault.nth * UPDATES, send)
        case "second run on the folder":
            _before(Progress, "advance", fault.nth, pause)
        case "changed data set":
            sklearn.datasets.load_digits = fewer


def _before(owner: Any, name: str, nth: int, action: Callable[[], None]) -> None:
    """Lets `action` happen just before the nth call of `owner.name`."""
    original, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            action()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
