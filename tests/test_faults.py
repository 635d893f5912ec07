"""Real processes, really killed: one life of a run folder, and what each process says.

Every test that starts a process is bounded by `faults.TIME_LIMIT`.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from batchgrow.run.checkpoints import positions_of
from experiments import faults
from experiments.faults import errors, resumed_at, said, start, status
from experiments.struck import UPDATES, Fault, beside


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert status(start(workdir)) == 0, said(workdir)
    return workdir


def complaint(workdir: pathlib.Path) -> str:
    """The one line with which the last process ended; there is no traceback."""
    assert "Traceback" not in said(workdir), said(workdir)
    (line,) = errors(workdir)
    return line


def wait_for(training: faults.Training, flag: str) -> None:
    """Until a training in one process has left this file beside its folder."""
    deadline = time.monotonic() + faults.TIME_LIMIT
    while not beside(training.workdir, flag).exists():
        assert training.processes[0].is_alive() and time.monotonic() < deadline, flag
        time.sleep(0.05)


def newest(workdir: pathlib.Path) -> int:
    return max(positions_of(str(workdir)), default=0)


@pytest.mark.slow
def test_a_folder_survives_everything(undisturbed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    rng = random.Random(0)

    # Killed where it hurts; each start goes on from the newest checkpoint that is there.
    for kind, nth, delay in (
        ("kill at an update", 1, 0.0),
        ("kill in an evaluation", 1, 0.01),
        ("kill in a checkpoint write", 2, 0.03),
    ):
        before = newest(workdir)
        assert status(start(workdir, Fault(kind, nth, delay))) == -signal.SIGKILL
        assert resumed_at(workdir) == before

    # Asked to stop: the update is finished, a checkpoint written, and the status says so.
    for kind, updates in (
        ("SIGTERM at an update", UPDATES),
        ("SIGINT at an update", UPDATES),
        ("SIGTERM in a compilation", 1),
    ):
        before = newest(workdir)
        assert status(start(workdir, Fault(kind))) == 75
        assert resumed_at(workdir) == before
        assert newest(workdir) == before + updates * 16
        assert f"{kind[:7].strip()}: stopping after this update" in said(workdir)
    assert status(start(workdir, Fault("SIGTERM in an evaluation"))) == 75
    (last_row,) = faults.rows(workdir)[-1:]
    assert newest(workdir) == last_row["examples_seen"] and "test_loss" in last_row

    # The disk becomes full: one line, and the checkpoints before stay.
    for kind in ("full disk before a row", "full disk in a checkpoint write"):
        before = newest(workdir)
        assert status(start(workdir, Fault(kind, 1, part=0.9))) == 1
        line = complaint(workdir)
        assert "written (File too large); free space and start the same command again" in line
        assert newest(workdir) == before > 0

    # Refused, with nothing touched.
    held = start(workdir, Fault(faults.SECOND))
    wait_for(held, "paused")
    assert status(start(workdir)) == 2
    line = complaint(workdir)
    assert "another run is using it" in line
    # The first Ctrl-C is noted, the second ends the process at once.
    os.kill(held.processes[0].pid, signal.SIGINT)
    wait_for(held, "interrupted")
    os.kill(held.processes[0].pid, signal.SIGINT)
    assert status(held) == 130
    for kind, what in (
        ("changed config", "-> 0.01); it changes the trajectory, so take another --workdir"),
        (
            "changed data set",
            "data.num_train_examples is 1437, but experiments.struck:read_digits h",
        ),
    ):
        before = faults.contents(workdir)
        assert status(start(workdir, Fault(kind))) == 2
        assert what in complaint(workdir)
        assert faults.contents(workdir) == before

    # Damaged while nobody looked.
    assert len(positions_of(str(workdir))) >= 2
    last, one_before = newest(workdir), positions_of(str(workdir))[-2]
    (workdir / "checkpoints" / str(last) / "state" / "manifest.ocdbt").write_bytes(b"")
    for path in (workdir / "checkpoints" / str(last) / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert faults.damage(workdir, "cut metrics.jsonl", rng)
    assert status(start(workdir, Fault("stop at a growth"))) == 76
    assert resumed_at(workdir) == one_before
    assert f"set aside as {last}.bad" in said(workdir)
    assert (workdir / "checkpoints" / f"{last}.bad").is_dir()
    lost = faults.rows_told_lost(workdir)
    assert newest(workdir) == 27 * 16

    # Killed with everything trained and nothing summed up.
    assert status(start(workdir, Fault("kill before the summary"))) == -signal.SIGKILL
    assert not (workdir / "summary.json").exists()
    assert status(start(workdir)) == 0
    assert "best" in json.loads((workdir / "summary.json").read_text())
    found, expected = faults.rows(workdir), faults.rows(undisturbed)
    assert found == [row for row in expected if row in found]
    assert len(expected) - len(found) == lost
    for array, expected in zip(
        faults.final_arrays(workdir, undisturbed),
        faults.final_arrays(undisturbed, undisturbed),
        strict=True,
    ):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.slow
def test_a_process_with_a_full_disk_does_not_wait_for_the_other(tmp_path: pathlib.Path) -> None:
    """Both used to wait in barriers of Orbax."""
    workdir = tmp_path / "run"
    fault = Fault("full disk in a checkpoint write", part=0.5)
    struck, other = faults.statuses(start(workdir, fault, num_processes=2))
    assert struck == faults.FULL
    assert other in (1, -signal.SIGABRT)
    assert "could not be written (File too large); free space" in said(workdir)
    assert "Traceback" not in said(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "part"), [(0, 0.0), (0, 0.9), (1, 0.0)])
def test_a_full_disk_in_the_last_checkpoint_write_ends_both(
    process: int, part: float, tmp_path: pathlib.Path
) -> None:
    """Each waited for the other at another barrier of Orbax."""
    workdir = tmp_path / "run"
    fault = Fault("full disk in the last checkpoint write", part=part, process=process)
    assert faults.statuses(start(workdir, fault, num_processes=2)) == [1, 1]
    assert "Traceback" not in said(workdir)
    own, others = sorted(errors(workdir), key=lambda line: "another process" in line)
    assert "a checkpoint could not be written (File too large); free space" in own
    assert "a checkpoint could not be written (another process could not write" in others
    before = newest(workdir)
    assert faults.statuses(start(workdir, num_processes=2)) == [0, 0]
    assert 0 < before == resumed_at(workdir) < newest(workdir)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize("inodes", [30, 56])
def test_a_disk_without_inodes_ends_the_run(inodes: int, tmp_path: pathlib.Path) -> None:
    """Threads of Orbax waited for 300 s for a folder that could not be made."""
    options = f"size=64m,nr_inodes={inodes}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    fields = ("model.channels=2", "recipe.num_epochs=6.0", "run.checkpoint_every_epochs=0.2")
    flags = ["--config=configs/digits.py:hybrid", *(f"--config.{field}" for field in fields)]
    command = [sys.executable, "-m", "experiments.train", *flags, f"--workdir={tmp_path}/run"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert done.returncode == 1, done.stderr
    assert "could not be written (No space left on device); free space" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "process"),
    [
        ("SIGINT in the last checkpoint write", 1),
        ("SIGTERM before the summary", 0),
        ("SIGTERM and a wait after the summary", 0),
        ("SIGTERM and a wait after the summary", 1),
    ],
)
def test_a_signal_at_the_end_of_two_is_too_late(
    kind: str, process: int, tmp_path: pathlib.Path
) -> None:
    """One that has left does not answer JAX's preemption service, which waits for it."""
    workdir = tmp_path / "run"
    codes = faults.statuses(start(workdir, Fault(kind, process=process), num_processes=2))
    assert codes == [0, 0], said(workdir)
    assert json.loads((workdir / "summary.json").read_text())["best"]
