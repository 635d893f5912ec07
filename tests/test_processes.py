"""Several processes, real ones, on emulated devices: they train as one does, and fail as one."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from member import HEARTBEAT_SECONDS
from tiny import make_config, read_rows, tiny_experiment

from batchgrow.data.stream import Stream
from batchgrow.run.timers import TIMING
from batchgrow.train import Outcome, train
from experiments import make_fake_imagenet
from experiments.ports import free_port

HERE = pathlib.Path(__file__).parent
TIME_LIMIT = 300  # seconds, on a machine that is busy with other things
# 67 updates of 32 examples, so that 4 devices share a ghost batch of 16; then 17 of 128.
CHANGES: dict[str, Any] = {
    "run.num_devices": None,
    "run.checkpoint_every_epochs": 100.0,
    "recipe.num_epochs": 3.0,
    "recipe.boundaries_epochs": (1.5,),
    "log_every_epochs": 0.5,
    "evaluate_every_epochs": 1.5,
}
BOUNDARY = 67 * 32


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    said: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


def run_processes(
    workdir: pathlib.Path,
    changes: Mapping[str, Any] = CHANGES,
    *,
    ids: tuple[int, ...] = (0, 1),
    special: Mapping[int, Mapping[str, str]] | None = None,
    workdirs: Mapping[int, pathlib.Path] | None = None,
    options: tuple[str, ...] = (),
    port: int | None = None,
) -> list[Ended]:
    """Starts members of a pair with 4 devices each, and waits for them.

    Args:
      ids: which of the two.
      special: what else is in the environment of a process (tests/member.py).
      workdirs: of processes that have another one.
      options: more flags.
      port: of the coordinator.
    """
    port = port or free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
    }
    connection = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    logs = [pathlib.Path(f"{workdir}.{i}.log") for i in ids]
    started = time.monotonic()
    processes = []
    for i, log in zip(ids, logs, strict=True):
        where = str((workdirs or {}).get(i, workdir))
        command = [sys.executable, str(HERE / "member.py"), where, json.dumps(changes)]
        with open(log, "w") as file:
            processes.append(
                subprocess.Popen(
                    [*command, *connection, f"--process_id={i}", *options],
                    env=environment | dict((special or {}).get(i, {})),
                    stdout=file,
                    stderr=file,
                )
            )
    ended: dict[int, Ended] = {}
    while len(ended) < len(processes):
        seconds = time.monotonic() - started
        for i, process in enumerate(processes):
            if i not in ended and (status := process.poll()) is not None:
                ended[i] = Ended(status, logs[i].read_text(), seconds)
        if seconds > TIME_LIMIT:
            for process in processes:
                process.kill()
            raise TimeoutError("\n".join(log.read_text()[-2000:] for log in logs))
        time.sleep(0.1)
    return [ended[i] for i in range(len(processes))]


def run_here(workdir: pathlib.Path, changes: Mapping[str, Any]) -> Outcome:
    """The same training in this process, on 8 devices."""
    return train(tiny_experiment(changes), str(workdir), override_config=True)


def noted(workdir: pathlib.Path, process: int, what: str) -> list[int]:
    return [int(n) for n in pathlib.Path(f"{workdir}.{process}.{what}").read_text().split()]


def final_state(workdir: pathlib.Path) -> list[np.ndarray]:
    """Every array of the last checkpoint's state."""
    path = workdir / "checkpoints" / str(steps(workdir)[-1]) / "state"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        target = jax.tree.map(
            lambda saved: jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=here),
            checkpointer.metadata(path).item_metadata.tree,
        )
        tree = checkpointer.restore(path, target)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree["state"])]


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same_run(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """Rows and state agree to float tolerance, and the folders hold the same files."""
    rows, expected = read_rows(workdir), read_rows(reference)
    for row in (*rows, *expected):
        for name in TIMING:
            del row[name]
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=2e-3, abs=1e-5)
    for array, other in zip(final_state(workdir), final_state(reference), strict=True):
        np.testing.assert_allclose(array, other, rtol=2e-3, atol=2e-4)
    assert {p.name for p in workdir.iterdir()} == {p.name for p in reference.iterdir()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What one process makes of it."""
    workdir = tmp_path_factory.mktemp("one") / "reference"
    assert run_here(workdir, CHANGES) is Outcome.FINISHED
    return workdir


@pytest.mark.slow
def test_two_stream_until_one_is_asked_to_stop_and_one_goes_on(
    reference: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """SIGTERM to one stops both at the same update; each example was read by one of them.

    Asked to, both stop once more where the batch grows.
    """
    workdir = tmp_path / "run"
    ended = run_processes(
        workdir,
        CHANGES | {"run.input": "streamed", "run.updates_per_dispatch": 1},
        special={1: {"DISPATCHES": "20", "SIGNAL": "SIGTERM"}},
    )
    assert [e.status for e in ended] == [75, 75], ended
    positions = noted(workdir, 0, "positions")
    assert noted(workdir, 1, "positions") == positions
    stopped_at = positions[-1]
    assert steps(workdir)[-1] == stopped_at < make_config(CHANGES).data.num_train_examples * 3

    reads = [noted(workdir, i, "reads") for i in (0, 1)]
    expected = Stream(1437, seed=0).indices(np.arange(stopped_at)).tolist()
    assert Counter(reads[0] + reads[1]) == Counter(expected)
    assert len(reads[0]) == len(reads[1])

    ended = run_processes(workdir, CHANGES, options=("--stop_at_growth", "--override_config"))
    assert [e.status for e in ended] == [76, 76], ended
    assert steps(workdir)[-1] == BOUNDARY
    assert run_here(workdir, CHANGES) is Outcome.FINISHED
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_two_measure_the_noise_that_one_does(tmp_path: pathlib.Path) -> None:
    """Of 5 pieces, which 8 devices do not share equally; the first value, before rounding grows."""
    changes = CHANGES | {"noise.share": 0.5, "noise.num_pieces": 5, "recipe.num_epochs": 0.5}
    changes |= {"recipe.boundaries_epochs": (0.25,), "log_every_epochs": 0.1}
    assert run_here(tmp_path / "one", changes) is Outcome.FINISHED
    assert [e.status for e in run_processes(tmp_path / "two", changes)] == [0, 0]
    one, two = (
        [row["gradient_noise_scale"] for row in read_rows(folder) if "gradient_noise_scale" in row]
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == len(two) >= 3
    assert two[0] == pytest.approx(one[0], rel=1e-4)


@pytest.mark.slow
def test_two_train_on_jpegs_as_one_does(tmp_path: pathlib.Path) -> None:
    """Through a growth, in micro-batches and on shared ghosts; each picture is read by one."""
    make_fake_imagenet.make(str(tmp_path / "data"), 96, 20, num_classes=10, seed=0)
    changes = CHANGES | {
        "data.name": "imagenet2012",
        "data.test_split": "validation",
        "data.num_train_examples": 96,
        "data.num_test_examples": 20,
        "data.image_size": 16,
        "data.on_bad_record": "stop",
        "task.mean": (127.5,) * 3,
        "task.std": (64.0,) * 3,
        "recipe.num_epochs": 4.0,
        "recipe.boundaries_epochs": (2.0,),
        "run.data_dir": str(tmp_path / "data"),
        "run.input": "workers",
        "run.max_microbatch_size": 4,
    }
    assert run_here(tmp_path / "one", changes) is Outcome.FINISHED
    ended = run_processes(tmp_path / "two", changes)
    assert [e.status for e in ended] == [0, 0], ended
    assert noted(tmp_path / "two", 0, "positions") == [32, 64, 96, 128, 160, 192, 320, 448]
    assert_same_run(tmp_path / "two", tmp_path / "one")

    # Before, the processes compare 16 examples.
    crops = [noted(tmp_path / "two", i, "crops")[16:] for i in (0, 1)]
    assert sorted(crops[0] + crops[1]) == list(range(6 * 32 + 2 * 128))
    assert len(crops[0]) == len(crops[1])


@pytest.mark.slow
def test_one_grows_into_two(reference: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Two go on where one stopped to grow, are preempted, go on, and write one set of files."""
    workdir = tmp_path / "run"
    stopping = CHANGES | {"run.stop_at_growth": True}
    assert run_here(workdir, stopping) is Outcome.GROWTH
    assert steps(workdir)[-1] == BOUNDARY
    several = CHANGES | {"run.updates_per_dispatch": 4}
    fault = {"DISPATCHES": "1", "SIGNAL": "SIGTERM"}
    for status, special in ((75, {0: fault}), (0, {})):
        ended = run_processes(workdir, several, options=("--override_config",), special=special)
        assert [e.status for e in ended] == [status] * 2, ended
    positions = noted(workdir, 0, "positions")
    assert positions == noted(workdir, 1, "positions")
    assert positions[-1] == BOUNDARY + 17 * 128
    assert max(np.diff([BOUNDARY, *positions])) == 4 * 128
    assert_same_run(workdir, reference)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["devices"]["processes"] == 2
    assert summary["devices"]["count"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_takes_the_other_down(dies: int, tmp_path: pathlib.Path) -> None:
    """Within the heartbeat and some more, and the other says why."""
    ended = run_processes(
        tmp_path / "run",
        CHANGES | {"recipe.num_epochs": 500.0, "recipe.boundaries_epochs": (400.0,)},
        special={dies: {"DISPATCHES": "10", "SIGNAL": "SIGKILL"}},
    )
    died, other = ended[dies], ended[1 - dies]
    assert died.status == -signal.SIGKILL
    assert other.status in (1, -signal.SIGABRT)
    reasons = ("another task died", "Connection closed by peer", "collective mismatch")
    assert any(reason in other.said for reason in reasons)
    assert "Fatal Python error" not in other.said
    assert other.seconds - died.seconds < HEARTBEAT_SECONDS + 30  # for a busy machine


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_signal_just_after_a_checkpoint_stops_both(process: int, tmp_path: pathlib.Path) -> None:
    """Orbax must not use the service that tells the processes of a signal."""
    workdir = tmp_path / "run"
    changes = {"run.checkpoint_every_epochs": 0.2, "run.updates_per_dispatch": 1}
    ended = run_processes(
        workdir, CHANGES | changes, special={process: {"CHECKPOINTS": "2", "SIGNAL": "SIGTERM"}}
    )
    assert [e.status for e in ended] == [75, 75], ended
    positions = noted(workdir, 0, "positions")
    assert positions == noted(workdir, 1, "positions")
    assert steps(workdir)[-1] == positions[-1] < BOUNDARY


DIFFERENT = {
    "seed": ({"seed": 1}, "seed is 0 on process 0, 1 on process 1"),
    "data": ({"roll": True}, "train data is 1437 examples, CRC-32 "),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DIFFERENT)
def test_processes_that_differ_are_refused(what: str, tmp_path: pathlib.Path) -> None:
    own, said = DIFFERENT[what]
    ended = run_processes(tmp_path / "run", special={1: {"OWN": json.dumps(own)}})
    assert [e.status for e in ended] == [2, 2], ended
    for process in ended:
        (line,) = process.errors
        assert line.startswith("error: the processes differ: ") and said in line
        assert "start all of them with the same config" in line
        assert "Traceback" not in process.said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_workdir_that_is_local_to_each_process_is_refused(tmp_path: pathlib.Path) -> None:
    ended = run_processes(tmp_path / "run", workdirs={1: tmp_path / "other"})
    assert [e.status for e in ended] == [2, 2], ended
    for process in ended:
        (line,) = process.errors
        assert "process 1 cannot see what process 0 writes there; all processes need" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_batch_for_fewer_devices_is_refused_by_all(tmp_path: pathlib.Path) -> None:
    changes = {"recipe.batch_size": 4, "ghost_batch_size": 4, "plan.name": "decay"}
    ended = run_processes(tmp_path / "run", CHANGES | changes)
    assert [e.status for e in ended] == [2, 2], ended
    for process in ended:
        assert len(process.errors) == 1
        assert "batch size 4 cannot be laid out on 8 devices" in process.errors[0]
        assert "8" in process.errors[0].split("nearest")[1]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_process_refused_alone_does_not_leave_the_other_hanging(tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused, other = run_processes(workdir)
    assert refused.status == 2, refused
    assert refused.errors == [
        f"error: workdir {workdir}: another run is using it; wait for it or choose another folder"
    ]
    assert other.status in (1, -signal.SIGABRT)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_nobody_answers(process: int, tmp_path: pathlib.Path) -> None:
    port = free_port()
    options = ("--initialization_timeout=2",)
    (ended,) = run_processes(tmp_path / "run", ids=(process,), options=options, port=port)
    assert ended.status == 1, ended  # not 2: a later start may find them
    assert ended.said.strip().splitlines() == [
        f"error: --coordinator_address 127.0.0.1:{port}: process {process} of 2 cannot join (no "
        "answer in 2 s); check that all processes were started and that the address is reachable"
    ]
