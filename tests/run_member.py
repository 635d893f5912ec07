"""One of two processes that tests/test_agreement.py starts.

    python tests/run_member.py FOLDER PORT PROCESS

It writes what each scenario returns or raises to FOLDER/PROCESS.json.
"""

import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from batchgrow.run import agreement
from batchgrow.run.barriers import Barriers, BrokenBarrier
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.run.signals import Preemption
from batchgrow.tasks import Metric

DISPATCHES = 100
PLAN = "\n".join(map(str, range(100)))


def main(folder: pathlib.Path, process: int) -> None:
    agreement.SHARED_SECONDS = 1.0
    shared = epath.Path(folder)
    apart = epath.Path(folder / f"apart{process}")
    apart.mkdir()

    def agree(**facts: str) -> Callable[[], None]:
        return lambda: agreement.check_agreement(facts)

    only = {"data.name": "digits"} if process == 1 else {}
    many = {f"field{index}": str(process) for index in range(20)}
    report("equal", agree(seed="0", plan=PLAN))
    report("seed", agree(seed=str(process), plan=PLAN, rate="0.1"))
    report("plan", agree(plan=PLAN + str(process)))
    report("missing", agree(seed="0", **only))
    report("many", agree(**many))
    report("shared", lambda: agreement.check_shared(shared))
    report("apart", lambda: agreement.check_shared(apart))
    report("gone", lambda: agreement.check_shared(shared / "gone"))
    report("all agree", lambda: [agreement.all_agree(mine) for mine in (True, process == 0)])
    report("barriers", lambda: meet(process))
    report("stopped after", lambda: train(shared / "run", process))


def meet(process: int) -> list[str]:
    """Barriers of one name, of two, and of one again."""
    barriers, told = Barriers(), []
    for names in (("start", "start"), ("end", "end"), ("start", "start"), ("a", "b"), ("c", "c")):
        try:
            barriers(key=names[process], timeout_ms=60_000)
            told.append("met")
        except BrokenBarrier as error:
            told.append(str(error))
    return told


results: dict[str, Any] = {}


def report(name: str, scenario: Callable[[], Any]) -> None:
    try:
        result = scenario()
    except ValueError as error:
        result = f"{type(error).__name__}: {error}"
    results[name] = result


def train(folder: epath.Path, process: int) -> int:
    """A loop with a checkpoint every third dispatch; process 1 gets SIGTERM after the second."""
    sharding = jax.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P())
    state = jax.make_array_from_process_local_data(sharding, np.arange(5.0, dtype=np.float32))
    metric = Metric("loss", "lower")
    with (
        Checkpoints(folder, keep=2, metric=metric, config={}) as checkpoints,
        Preemption() as preemption,
    ):
        for dispatch in range(1, DISPATCHES + 1):
            time.sleep(0.02)
            if dispatch % 3 == 0:
                checkpoints.save(dispatch * 100, state, {}, None)
            if process == 1 and dispatch == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            if preemption.requested():
                return dispatch
    return DISPATCHES


if __name__ == "__main__":
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
    main(pathlib.Path(sys.argv[1]), int(sys.argv[3]))
    pathlib.Path(sys.argv[1], f"{sys.argv[3]}.json").write_text(json.dumps(results))
