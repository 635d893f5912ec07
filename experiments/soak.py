"""Run small trainings under random faults, and count the faults and what was lost.

python -m experiments.soak --runs=30 --seed=0

Each run is started again after every fault until it ends. Then its arrays and its rows are compared
bit for bit with those of an undisturbed run. Every third run has two processes. If a fault cuts off
the end of metrics.jsonl, the rows from before the last checkpoint are lost, and the run must say
how many.
"""

import json
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from absl import flags, logging

from batchgrow.run import environment
from batchgrow.run.checkpoints import positions_of
from batchgrow.text_table import text_table
from experiments import cli, faults
from experiments.faults import resumed_at, said, start, statuses
from experiments.launch import STATUS
from experiments.struck import Fault, beside, digits_file

FAULTS_PER_RUN = 8
DAMAGED = (*faults.DAMAGE, faults.DAMAGED_CACHE, faults.DAMAGED_DATA)
UNTOUCHED = (*faults.CHANGED, *faults.PAIR_REFUSALS)  # starts that leave the folder as it is
_BOTH = (*faults.RUNNING, faults.PREPARATION, *DAMAGED)
KINDS = {1: (*_BOTH, *faults.REFUSALS), 2: (*_BOTH, *faults.PAUSES, *UNTOUCHED)}
EXPECTED = faults.RUNNING | faults.PAUSES

_RUNS = flags.DEFINE_integer("runs", 30, "Largest number of runs, each with up to 9 faults.", 1)
_SECONDS = flags.DEFINE_float(
    "seconds", float("inf"), "Time limit in seconds: no run starts later."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the faults and of their times.")
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON.")


def soak(
    runs: int, seed: int, folder: pathlib.Path, seconds: float = float("inf")
) -> dict[str, Any]:
    """Runs trainings under faults; prints a line for each.

    Args:
      runs: the most trainings.
      seed: decides what happens when.
      folder: an empty one for the run folders.
      seconds: no training begins after so many.

    Returns:
      What `--json` prints: totals, and by kind of fault how many were injected, were answered as
      expected (status, message), and were part of runs that ended identical.
    """
    started, chosen = time.perf_counter(), Counter()
    nothing = {"injected": 0, "as_expected": 0, "in_identical_runs": 0}
    kinds = {
        _name(kind, count): Counter(nothing)
        for count, some in KINDS.items()
        for kind in (*some, faults.CUT_JSON)
    }
    totals = Counter(runs=0, rows_lost=0, rows_lost_and_told=0, rows_twice=0)
    totals.update(checkpoints_lost=0, runs_identical=0)
    for number in range(runs):
        if time.perf_counter() - started > seconds:
            break
        count = 2 if number % 3 == 2 else 1
        reference = _undisturbed(folder / f"undisturbed{count}", count)
        run = _Disturbed(folder / f"run{number}", count, random.Random(f"{seed} {number}"))
        told = list(run.faults(run.choose(chosen)))
        found, expected = faults.rows(run.workdir), faults.rows(reference)
        arrays = (faults.final_arrays(path, reference) for path in (run.workdir, reference))
        lost, told_lost = [row for row in expected if row not in found], sum(run.told.values())
        same = found == [row for row in expected if row not in lost]
        same = same and len(lost) <= told_lost and all(map(np.array_equal, *arrays))
        totals.update(
            runs=1,
            rows_lost=max(0, len(lost) - told_lost),
            rows_lost_and_told=min(len(lost), told_lost),
            rows_twice=len(found) - len({row["examples_seen"] for row in found}),
            checkpoints_lost=sum(was_lost for _, _, was_lost in told),
            runs_identical=int(same),
        )
        for kind, right, _ in told:
            counts = dict(injected=1, as_expected=int(right), in_identical_runs=int(same))
            kinds[_name(kind, count)].update(counts)
        told_kinds = [_name(kind, count) for kind, _, _ in told]
        print(f"run {number}: {told_kinds} identical {same}", file=sys.stderr, flush=True)
    return {
        "seed": seed,
        "faults": sum(counts["injected"] for counts in kinds.values()),
        **totals,
        "kinds": kinds,
        "seconds": time.perf_counter() - started,
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    rows = [["fault", "injected", "as expected", "in identical runs"]]
    rows += [[kind, *map(str, counts.values())] for kind, counts in result["kinds"].items()]
    return text_table(rows, left=True) + (
        f"\n\n{result['faults']} faults; {result['runs_identical']} of {result['runs']} runs ended "
        f"bit-identical to the undisturbed one; rows lost {result['rows_lost']}, twice "
        f"{result['rows_twice']}, with a damaged metrics.jsonl and as its message said "
        f"{result['rows_lost_and_told']}; checkpoints lost {result['checkpoints_lost']}"
    )


def _name(kind: str, num_processes: int) -> str:
    return kind if num_processes == 1 else f"{kind}, {num_processes} processes"


def _undisturbed(workdir: pathlib.Path, num_processes: int) -> pathlib.Path:
    """A run of so many processes that nothing disturbs."""
    if not workdir.exists():
        codes = statuses(start(workdir, num_processes=num_processes))
        if any(codes):
            raise RuntimeError(f"the undisturbed training failed: {said(workdir)}")
    return workdir


@dataclass
class _Disturbed:
    """A run in `workdir` that faults interrupt.

    Attributes:
      told: rows that a start said were lost, by the checkpoint that it resumed from.
    """

    workdir: pathlib.Path
    num_processes: int
    rng: random.Random
    told: dict[int, int] = field(default_factory=dict)

    def choose(self, chosen: Counter) -> list[Fault]:
        """The faults of this run, in their order.

        Args:
          chosen: how often each kind was chosen for other runs. This run's are added.
        """
        rng, count = self.rng, self.num_processes
        # The kinds that were chosen least often, in random order. Faults that need a checkpoint
        # come late, and those at the end of a run last.
        rare = sorted(KINDS[count], key=lambda kind: (chosen[_name(kind, count)], rng.random()))
        kinds = rare[:FAULTS_PER_RUN]
        chosen.update(_name(kind, count) for kind in kinds)
        late = (*faults.DAMAGE, *faults.LAST)
        kinds.sort(key=lambda kind: late.index(kind) if kind in late else -1)
        return [self._fault(kind) for kind in kinds]

    def faults(self, chosen: Sequence[Fault]) -> Iterator[tuple[str, bool, bool]]:
        """Faults and restarts until the run has had its share, then to the end.

        Args:
          chosen: the faults. One that does not happen, as when the run has ended, is left out.

        Yields:
          The kind of each fault, whether the processes behaved as they should, and whether a
          complete checkpoint was not found again.
        """
        for fault in chosen:
            kind = fault.kind
            before = positions_of(str(self.workdir))
            ended = (self.workdir / "summary.json").exists()
            if kind in (*faults.DAMAGE, faults.DAMAGED_CACHE):
                if ended or not faults.damage(self.workdir, kind, self.rng):
                    continue
            codes, right = self._strike(fault)
            struck = kind in (*EXPECTED, faults.PREPARATION, faults.SECOND)
            struck = struck and EXPECTED.get(kind) != faults.FINISHED
            if not any(codes) and (ended or struck):
                continue  # the run had ended before the fault could happen
            if not right:
                print(f"{fault}: {codes}: {said(self.workdir)}", file=sys.stderr)
            # Of a damaged checkpoint the one before is the newest that is complete.
            whole = before[:-1] if kind in faults.DAMAGE[:2] else before
            if lost := faults.rows_told_lost(self.workdir):
                self.told[max(whole, default=0)] = lost
            position = resumed_at(self.workdir)
            yield kind, right, position is not None and position < max(whole, default=0)
        yield faults.CUT_JSON, self._finish(), False

    def _fault(self, kind: str) -> Fault:
        rng = self.rng
        # Process 0 writes the rows.
        process = 0 if "disk" in kind else rng.randrange(self.num_processes)
        return Fault(kind, rng.randint(1, 2), rng.uniform(0, 0.1), rng.random(), process)

    def _finish(self) -> bool:
        """Trains to the end, then damages JSON; whether it is written again."""
        begin = partial(start, self.workdir, num_processes=self.num_processes)
        if any(statuses(begin())):
            raise RuntimeError(f"{self.workdir} failed without a fault: {said(self.workdir)}")
        faults.damage(self.workdir, faults.CUT_JSON, self.rng)
        right = not any(statuses(begin()))
        for name in faults.JSON_FILES:
            json.loads((self.workdir / name).read_bytes())
        return right

    def _strike(self, fault: Fault) -> tuple[list[int], bool]:
        """A start with a fault: the statuses, and whether they and the messages are right."""
        kind, workdir = fault.kind, self.workdir
        begin = partial(start, workdir, num_processes=self.num_processes)
        stopping = Fault("SIGTERM at an update", fault.nth)
        if kind == faults.SECOND:
            return self._hold(fault)
        if kind in UNTOUCHED and not (workdir / "config.json").exists():
            statuses(begin(stopping))
        before = faults.contents(workdir)
        if kind == faults.DAMAGED_DATA:
            faults.damage(workdir, kind, self.rng)
        codes = statuses(begin(stopping if kind in DAMAGED else fault))
        if kind == faults.DAMAGED_DATA:
            digits_file(workdir).unlink()  # The next start writes it.
        return codes, self._is_right(fault, codes, before)

    def _is_right(self, fault: Fault, codes: list[int], before: dict[str, bytes]) -> bool:
        """Whether a start with a fault ended as it should.

        Args:
          fault: what happened.
          codes: the status of each process.
          before: the files of the run folder before the start.
        """
        kind, count, lines = fault.kind, self.num_processes, faults.errors(self.workdir)
        untouched = faults.contents(self.workdir) == before
        refused = set(codes) == {faults.REFUSED} and len(lines) == count and untouched
        if kind in UNTOUCHED:
            return refused
        if kind in DAMAGED:  # Some bits of a file do not matter.
            whole = set(codes) in ({faults.PREEMPTED}, {faults.FINISHED})
            return whole or (kind == faults.DAMAGED_DATA and refused)
        if kind == faults.PREPARATION and count == 1:
            return codes == [faults.PREEMPTED] and untouched
        text = said(self.workdir)
        told = "free space" in text and "Traceback" not in text
        if kind == faults.LAST[0]:
            return told and set(codes) == {faults.FULL} and len(lines) == count
        expected = EXPECTED.get(kind, faults.PREEMPTED)
        if expected in STATUS.values():
            return set(codes) == {expected}
        others = codes[: fault.process] + codes[fault.process + 1 :]
        alone = codes[fault.process] == expected and not set(others) & set(STATUS.values())
        return alone and (told or expected != faults.FULL)

    def _hold(self, fault: Fault) -> tuple[list[int], bool]:
        """A second start while the first one holds the folder."""
        flag = beside(self.workdir, "paused")
        flag.unlink(missing_ok=True)
        first = start(self.workdir, fault)
        while not flag.exists() and first.processes[0].is_alive():
            time.sleep(0.02)
        if not flag.exists():
            return statuses(first), False
        codes = statuses(start(self.workdir))
        right = codes == [faults.REFUSED] and "another run" in said(self.workdir)
        first.processes[0].kill()
        return codes, right and statuses(first) == [faults.KILLED]


def main(_: list[str]) -> int:
    """Soaks and prints the table; exit status 1 if anything was lost or not identical."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(_RUNS.value, _SEED.value, pathlib.Path(folder), _SECONDS.value)
    print(json.dumps(result, indent=2) if _JSON.value else table(result))
    lost = result["rows_lost"] + result["rows_twice"] + result["checkpoints_lost"]
    expected = sum(counts["as_expected"] for counts in result["kinds"].values())
    return int(lost > 0 or expected < result["faults"] or result["runs_identical"] < result["runs"])


if __name__ == "__main__":
    cli.run(main)
