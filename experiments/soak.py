"""Small trainings under random faults: what was injected, and what was lost (to be 0).

python -m experiments.soak --runs=30 --seed=0

Each training is started again after every fault, until it ends; then its arrays and its rows are
compared, bit for bit, with those of a training that nothing disturbed. Processes die where a call
of the library is under way, by real signals and real limits; files are damaged in between.
"""

import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags, logging

from batchgrow import environment, loop, runlog, train
from batchgrow.checkpoint import Checkpoints
from batchgrow.data.sources import Images, load_images
from batchgrow.config import Config
from batchgrow.progress import Progress
from configs import digits
from experiments import cli, launch

FAULTS_PER_RUN = 7
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
REFUSALS = ("second run on the folder", "changed config", "changed data set")
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
    config.run.eval_batch_size = 360
    return config


def start(workdir: pathlib.Path, fault: Fault = Fault()) -> multiprocessing.Process:
    """Starts a training in a process of its own, in which `fault` will happen."""
    context = multiprocessing.get_context("forkserver")
    # The slow imports once for all processes.
    context.set_forkserver_preload(["batchgrow.train", "experiments.launch", "configs.digits"])
    process = context.Process(target=_child, args=(str(workdir), fault))
    process.start()
    return process


def status(process: multiprocessing.Process) -> int:
    """The exit status of a process, -9 if it was killed.

    Raises:
      TimeoutError: if it does not end; it is killed then.
    """
    process.join(TIME_LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"a training did not end within {TIME_LIMIT} s")
    return process.exitcode


def said(workdir: pathlib.Path) -> str:
    """What the last process on this folder printed."""
    return _beside(workdir, "said").read_text()


def resumed_at(workdir: pathlib.Path) -> int | None:
    """`examples_seen` where the last process began to train; None if it did not get there."""
    path = _beside(workdir, "resumed")
    return int(path.read_text()) if path.exists() else None


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """The checkpoints of a folder, oldest first."""
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.exists() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def final_arrays(workdir: pathlib.Path) -> list[np.ndarray]:
    """Every array of the last checkpoint."""
    path = workdir / "checkpoints" / str(checkpoints(workdir)[-1]) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpointer.restore(path.absolute()))]


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


def soak(runs: int, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Runs the soak; progress goes to stderr.

    Returns:
      What `--json` prints: by kind of fault `injected`, `as_expected` (exit status and resuming),
      and `in_identical_runs`; and the totals.
    """
    started = time.perf_counter()
    reference = folder / "undisturbed"
    if status(start(reference)) != FINISHED:
        raise RuntimeError(f"the undisturbed training failed: {said(reference)}")
    arrays, expected_rows = final_arrays(reference), rows(reference)
    nothing = {"injected": 0, "as_expected": 0, "in_identical_runs": 0}
    kinds = {kind: Counter(nothing) for kind in KINDS}
    totals = Counter(rows_lost=0, rows_twice=0, checkpoints_lost=0, runs_identical=0)
    rng = random.Random(seed)
    for number in range(runs):
        workdir = folder / f"run{number}"
        told = list(_one_run(workdir, rng, kinds))
        found = rows(workdir)
        lost = sum(row not in found for row in expected_rows)
        same = all(map(np.array_equal, final_arrays(workdir), arrays)) and found == expected_rows
        totals["rows_lost"] += lost
        totals["rows_twice"] += len(found) - len({row["examples_seen"] for row in found})
        totals["checkpoints_lost"] += sum(was_lost for _, _, was_lost in told)
        totals["runs_identical"] += same
        for kind, right, _ in told:
            kinds[kind].update(injected=1, as_expected=int(right), in_identical_runs=int(same))
        print(f"run {number}: {[t[0] for t in told]} identical {same}", file=sys.stderr, flush=True)
        if same:
            shutil.rmtree(workdir)
    return {
        "runs": runs,
        "seed": seed,
        "faults": sum(count["injected"] for count in kinds.values()),
        **totals,
        "kinds": kinds,
        "seconds": time.perf_counter() - started,
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'fault':30} {'injected':>8} {'as expected':>11} {'in identical runs':>17}"]
    for kind, count in result["kinds"].items():
        lines.append(
            f"{kind:30} {count['injected']:8} {count['as_expected']:11} "
            f"{count['in_identical_runs']:17}"
        )
    lines.append(
        f"\n{result['faults']} faults; {result['runs_identical']} of {result['runs']} runs ended "
        f"bit-identical to the undisturbed one; rows lost {result['rows_lost']}, twice "
        f"{result['rows_twice']}; checkpoints lost {result['checkpoints_lost']}"
    )
    return "\n".join(lines)


def _one_run(
    workdir: pathlib.Path, rng: random.Random, kinds: dict[str, Counter]
) -> Iterator[tuple[str, bool, bool]]:
    """Faults and restarts until the run has had its share, then to the end.

    Yields:
      The kind of each fault, whether the process behaved as it should, and whether a checkpoint
      that was whole was not found again.
    """
    # The kinds that were seldom so far, in random order; first those that need no checkpoints.
    often = sorted(KINDS[:-1], key=lambda kind: (kinds[kind]["injected"], rng.random()))
    for kind in sorted(often[:FAULTS_PER_RUN], key=lambda kind: kind in (*DAMAGE, LAST)):
        fault = Fault(kind, rng.randint(1, 2), rng.uniform(0, 0.1), rng.random())
        before = checkpoints(workdir)
        if kind in DAMAGE and not damage(workdir, kind, rng):
            continue
        code, right = _refused(workdir, fault) if kind in REFUSALS else _struck(workdir, fault)
        if kind in RUNNING and code == FINISHED:
            continue  # the run ended before the fault could happen
        # Of a damaged checkpoint the one before is the newest that is whole.
        whole = before[:-1] if kind in DAMAGE[:2] else before
        position = resumed_at(workdir)
        yield kind, right, position is not None and position < max(whole, default=0)
    code = status(start(workdir))
    if code != FINISHED:
        raise RuntimeError(f"{workdir}: exit status {code} without a fault: {said(workdir)}")
    damage(workdir, CUT_JSON, rng)
    right = status(start(workdir)) == FINISHED
    whole = [json.loads((workdir / name).read_bytes()) for name in JSON_FILES]
    yield CUT_JSON, right and len(whole) == len(JSON_FILES), False


def _struck(workdir: pathlib.Path, fault: Fault) -> tuple[int, bool]:
    """A start with a fault, or on a damaged folder; then killed a little later."""
    if fault.kind in DAMAGE:
        code = status(start(workdir, Fault("kill -9 at an update", fault.nth)))
        return code, code in (KILLED, FINISHED)
    code = status(start(workdir, fault))
    right = code == RUNNING[fault.kind]
    if code == FULL:
        right = right and "free space" in said(workdir) and "Traceback" not in said(workdir)
    return code, right


def _refused(workdir: pathlib.Path, fault: Fault) -> tuple[int, bool]:
    """A start that must be refused, on a folder with a run in it."""
    if fault.kind == "second run on the folder":
        flag = _beside(workdir, "paused")
        flag.unlink(missing_ok=True)
        first = start(workdir, fault)
        while not flag.exists() and first.is_alive():
            time.sleep(0.02)
        code = status(start(workdir))
        right = code == REFUSED and "another run" in said(workdir)
        first.kill()
        return code, right and status(first) == KILLED
    if not (workdir / "config.json").exists():
        status(start(workdir, Fault("kill -9 at an update", fault.nth)))
    before = contents(workdir)
    code = status(start(workdir, fault))
    return code, code == REFUSED and contents(workdir) == before


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p): p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}


def _beside(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.{name}")


def _child(workdir: str, fault: Fault) -> None:
    """A process: the training command with its messages in a file and a fault to come."""
    folder = pathlib.Path(workdir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(_beside(folder, "said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    _beside(folder, "resumed").unlink(missing_ok=True)
    config = get_config()
    if fault.kind == "changed config":
        config.recipe.learning_rate = 0.01
    _arm(folder, fault)
    run_phases = train.run_phases

    def told(run: loop.Run, state: Any, examples_seen: int) -> loop.Outcome:
        _beside(folder, "resumed").write_text(str(examples_seen))
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
        _beside(folder, "paused").touch()
        time.sleep(TIME_LIMIT)

    def fewer(*args: Any) -> Images:
        images = load_images(*args)
        return Images(images.image[:-1], images.label[:-1])

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
            train.load_images = fewer


def _before(owner: Any, name: str, nth: int, action: Callable[[], None]) -> None:
    """Lets `action` happen just before the nth call of `owner.name`."""
    original, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            action()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def main() -> int:
    """Soaks and prints the table; exit status 1 if anything was lost or not identical."""
    logging.set_verbosity(logging.WARNING)
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        result = soak(values["runs"].value, values["seed"].value, pathlib.Path(folder))
    print(json.dumps(result, indent=2) if values["json"].value else table(result))
    lost = result["rows_lost"] + result["rows_twice"] + result["checkpoints_lost"]
    expected = sum(count["as_expected"] for count in result["kinds"].values())
    return int(lost > 0 or expected < result["faults"] or result["runs_identical"] < result["runs"])


if __name__ == "__main__":
    # Here and not above: the processes import this file once more.
    flags.DEFINE_integer("runs", 30, "Trainings, with up to 8 faults each.")
    flags.DEFINE_integer("seed", 0, "Decides what happens when.")
    flags.DEFINE_bool("json", False, "Print the result as JSON.")
    cli.run(main)
