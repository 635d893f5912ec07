"""Starts runs in processes of their own, injects faults, and reads what the runs have left.

`struck` has the faults inside of a process. Here files are damaged between two starts.
"""

import json
import multiprocessing
import pathlib
import random
import re
import signal
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from batchgrow.data.catalog import load_images
from batchgrow.data.tables import SPLITS
from batchgrow.run.checkpoints import positions_of
from batchgrow.run.timers import TIMING
from experiments import struck
from experiments.ports import free_port
from experiments.struck import NOTHING, TIME_LIMIT, Fault, beside, cache, digits_file

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
    "SIGTERM before the summary": FINISHED,
    "SIGINT at an update": PREEMPTED,
    "full disk before a row": FULL,
    "full disk in a checkpoint write": FULL,
    "full disk in the last checkpoint write": FULL,
    struck.GROWS: GROWTH,
}
# Before there is a run: one process ends at once, several notice when they train.
PREPARATION = "SIGTERM in a preparation of data"
# What is done to the files of a stopped run, or to its data.
DAMAGE = ("truncated checkpoint", "flipped bit in a checkpoint", "cut metrics.jsonl")
DAMAGED_CACHE, DAMAGED_DATA = "damaged compilation cache", "damaged data file"
CUT_JSON = "cut JSON of a finished run"
# Starts that must be refused, with the folder untouched.
SECOND = "hold at an update"  # and a second run on the folder meanwhile
CHANGED = (struck.CHANGED_CONFIG, struck.CHANGED_DATA)
REFUSALS = (SECOND, *CHANGED)
# Only with two processes: one is paused and then asked to stop.
PAUSES = {"pause at an update": PREEMPTED, "pause before the summary": FINISHED}
# Only with two processes: both must refuse to start.
PAIR_REFUSALS = (struck.DIFFERS, struck.LOCAL)
# At the end of a run, in this order.
LAST = (
    "full disk in the last checkpoint write",
    "kill before the summary",
    "SIGTERM before the summary",
    "pause before the summary",
)
JSON_FILES = ("config.json", "plan.json", "summary.json")


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


def start(workdir: pathlib.Path, fault: Fault = NOTHING, num_processes: int = 1) -> Training:
    """Starts a training in processes of its own, in which `fault` will happen."""
    context: Any = multiprocessing.get_context("forkserver")
    # The slow imports once for all processes.
    context.set_forkserver_preload(["experiments.struck"])
    if not digits_file(workdir).exists():
        splits = {split: load_images("digits", split) for split in SPLITS}
        arrays: dict[str, Any] = {
            f"{k}_{split}": v for split, data in splits.items() for k, v in data.arrays.items()
        }
        np.savez(digits_file(workdir), **arrays)
    flags: list[str] = []
    if num_processes > 1:
        address = f"127.0.0.1:{free_port()}"
        flags = [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
    beside(workdir, "resumed").unlink(missing_ok=True)
    training = Training([], [], workdir)
    for index in range(num_processes):
        output, inlet = context.Pipe(duplex=False)
        one = [*flags, f"--process_id={index}"] if flags else []
        process = context.Process(target=struck.run, args=(str(workdir), fault, index, one, inlet))
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


def final_arrays(workdir: pathlib.Path, whole: pathlib.Path) -> list[np.ndarray]:
    """Every array of the last checkpoint, by the tree of a run that nothing has damaged."""
    path, tree = (
        epath.Path(folder) / "checkpoints" / str(positions_of(str(folder))[-1]) / "state"
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
    elif kind == DAMAGED_DATA:
        files = [digits_file(workdir)]
    elif kind == "cut metrics.jsonl":
        files = [workdir / "metrics.jsonl"]
    else:
        steps = positions_of(str(workdir))
        newest = workdir / "checkpoints" / str(steps[-1]) if len(steps) > 1 else None
        files = sorted(newest.rglob("*")) if newest else []
    files = sorted(path for path in files if path.is_file() and path.stat().st_size > 1)
    if not files:
        return False
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    either = kind in (DAMAGED_CACHE, DAMAGED_DATA)
    if kind.startswith("flipped") or (either and rng.random() < 0.5):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        content = content[: rng.randrange(1, len(content))]
    path.write_bytes(content)
    return True


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p): p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}
