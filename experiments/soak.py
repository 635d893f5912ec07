"""Small trainings under random faults: what was injected, and what was lost (to be 0).

python -m experiments.soak --runs=30 --seed=0

Each training is started again after every fault, until it ends; then its arrays and its rows are
compared, bit for bit, with those of a training that nothing disturbed.
"""

import json
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags, logging

from batchgrow import environment
from experiments import cli, faults
from experiments.faults import Fault, checkpoints, resumed_at, said, start, status

FAULTS_PER_RUN = 7

_RUNS = flags.DEFINE_integer("runs", 30, "Trainings, with up to 8 faults each.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides what happens when.")
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON.")


def soak(runs: int, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """What `--json` prints: totals, and by kind of fault how many were injected, were answered as
    expected (status, message), and were part of runs that ended identical. Tells of each run.
    """
    started = time.perf_counter()
    reference = folder / "undisturbed"
    if status(start(reference)) != faults.FINISHED:
        raise RuntimeError(f"the undisturbed training failed: {said(reference)}")
    arrays, expected_rows = faults.final_arrays(reference, reference), faults.rows(reference)
    nothing = {"injected": 0, "as_expected": 0, "in_identical_runs": 0}
    kinds = {kind: Counter(nothing) for kind in faults.KINDS}
    totals = Counter(rows_lost=0, rows_twice=0, checkpoints_lost=0, runs_identical=0)
    rng = random.Random(seed)
    for number in range(runs):
        workdir = folder / f"run{number}"
        told = list(_one_run(workdir, rng, kinds))
        found = faults.rows(workdir)
        lost = sum(row not in found for row in expected_rows)
        same = found == expected_rows
        same &= all(map(np.array_equal, faults.final_arrays(workdir, reference), arrays))
        totals["rows_lost"] += lost
        totals["rows_twice"] += len(found) - len({row["examples_seen"] for row in found})
        totals["checkpoints_lost"] += sum(was_lost for _, _, was_lost in told)
        totals["runs_identical"] += same
        for kind, right, _ in told:
            kinds[kind].update(injected=1, as_expected=int(right), in_identical_runs=int(same))
        print(f"run {number}: {[t[0] for t in told]} identical {same}", file=sys.stderr, flush=True)
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
        a, b, c = count.values()
        lines.append(f"{kind:30} {a:8} {b:11} {c:17}")
    return "\n".join(lines) + (
        f"\n\n{result['faults']} faults; {result['runs_identical']} of {result['runs']} runs ended "
        f"bit-identical to the undisturbed one; rows lost {result['rows_lost']}, twice "
        f"{result['rows_twice']}; checkpoints lost {result['checkpoints_lost']}"
    )


def _one_run(
    workdir: pathlib.Path, rng: random.Random, kinds: dict[str, Counter]
) -> Iterator[tuple[str, bool, bool]]:
    """Faults and restarts until the run has had its share, then to the end.

    Yields:
      The kind of each fault, whether the process behaved as it should, and whether a checkpoint
      that was whole was not found again.
    """
    # The kinds that were seldom so far, in random order; first those that need no checkpoints.
    often = sorted(faults.KINDS[:-1], key=lambda kind: (kinds[kind]["injected"], rng.random()))
    for kind in sorted(
        often[:FAULTS_PER_RUN], key=lambda kind: kind in (*faults.DAMAGE, faults.LAST)
    ):
        fault = Fault(kind, rng.randint(1, 2), rng.uniform(0, 0.1), rng.random())
        before, ended = checkpoints(workdir), (workdir / "summary.json").exists()
        if kind in faults.DAMAGE and not faults.damage(workdir, kind, rng):
            continue
        code, right = (
            _refused(workdir, fault) if kind in faults.REFUSALS else _struck(workdir, fault)
        )
        if code == faults.FINISHED and (ended or kind in (*faults.RUNNING, faults.SECOND)):
            continue  # the run had ended before the fault could happen
        # Of a damaged checkpoint the one before is the newest that is whole.
        whole = before[:-1] if kind in faults.DAMAGE[:2] else before
        position = resumed_at(workdir)
        yield kind, right, position is not None and position < max(whole, default=0)
    code = status(start(workdir))
    if code != faults.FINISHED:
        raise RuntimeError(f"{workdir}: exit status {code} without a fault: {said(workdir)}")
    faults.damage(workdir, faults.CUT_JSON, rng)
    right = status(start(workdir)) == faults.FINISHED
    for name in faults.JSON_FILES:
        json.loads((workdir / name).read_bytes())
    yield faults.CUT_JSON, right, False


def _struck(workdir: pathlib.Path, fault: Fault) -> tuple[int, bool]:
    """A start with a fault, or on a damaged folder; then killed a little later."""
    if fault.kind in faults.DAMAGE:
        code = status(start(workdir, Fault("kill -9 at an update", fault.nth)))
        return code, code in (faults.KILLED, faults.FINISHED)
    code = status(start(workdir, fault))
    right = code == faults.RUNNING[fault.kind]
    if code == faults.FULL:
        right = right and "free space" in said(workdir) and "Traceback" not in said(workdir)
    return code, right


def _refused(workdir: pathlib.Path, fault: Fault) -> tuple[int, bool]:
    """A start that must be refused, on a folder with a run in it."""
    if fault.kind == faults.SECOND:
        flag = faults.beside(workdir, "paused")
        flag.unlink(missing_ok=True)
        first = start(workdir, fault)
        while not flag.exists() and first.process.is_alive():
            time.sleep(0.02)
        if not flag.exists():
            return status(first), False
        code = status(start(workdir))
        right = code == faults.REFUSED and "another run" in said(workdir)
        first.process.kill()
        return code, right and status(first) == faults.KILLED
    if not (workdir / "config.json").exists():
        status(start(workdir, Fault("kill -9 at an update", fault.nth)))
    before = faults.contents(workdir)
    code = status(start(workdir, fault))
    return code, code == faults.REFUSED and faults.contents(workdir) == before


def main() -> int:
    """Soaks and prints the table; exit status 1 if anything was lost or not identical."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(_RUNS.value, _SEED.value, pathlib.Path(folder))
    print(json.dumps(result, indent=2) if _JSON.value else table(result))
    lost = result["rows_lost"] + result["rows_twice"] + result["checkpoints_lost"]
    expected = sum(count["as_expected"] for count in result["kinds"].values())
    return int(lost > 0 or expected < result["faults"] or result["runs_identical"] < result["runs"])


if __name__ == "__main__":
    cli.run(main)
