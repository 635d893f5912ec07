"""Calls `train` by flags and turns its outcome into an exit status, for all training commands.

Exit statuses:
  0    finished (or was finished before)
  1    an error that is none of the below
  2    bad input: a flag, a config field, the run folder or the data; nothing was overwritten
  3    the training loss, a parameter or the last test loss became infinite or NaN
  75   preempted by SIGTERM or Ctrl-C, after a checkpoint or before training began: start the same
       command again
  76   stopped before a growth, by --stop_at_growth: start it again, on more devices if you like
  130  a second Ctrl-C, or one while the command starts; the last checkpoint is one from before
  134  another process died: JAX aborts this one, and says so ("unhealthy", "leader task")
  143  SIGTERM while the command starts; nothing was written
"""

import contextlib
import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from logging import getLogger
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from etils import epath

from batchgrow.config import ConfigDict, make_experiment
from batchgrow.data.catalog import name_of_tfds
from batchgrow.data.prepared import download
from batchgrow.errors import first_line
from batchgrow.experiment import Experiment, NonFiniteLoss, Outcome
from batchgrow.run.folder import FolderError
from batchgrow.run.signals import Preemption, stopping_at_once
from batchgrow.train import train
from experiments import cli

DIVERGED = 3
STATUS = {Outcome.FINISHED: 0, Outcome.PREEMPTED: 75, Outcome.GROWTH: 76}
GO_ON = (STATUS[Outcome.PREEMPTED], STATUS[Outcome.GROWTH])
GRACE_SECONDS = 5  # for the others to fail in the same way
HEARTBEAT_SECONDS = 30  # a process that dies takes the others down within this time, and a bit

OVERRIDE = flags.DEFINE_bool(
    "override_config",
    False,
    "Continue although fields under config.run differ from those of the folder.",
)
_STOP = flags.DEFINE_bool(
    "stop_at_growth", False, "Stop the run before the next growth, with exit status 76."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where tensorflow_datasets keeps its data (default: $TFDS_DATA_DIR)."
)
_DOWNLOAD = flags.DEFINE_bool(
    "download", False, "Download and prepare a data set of tensorflow_datasets if it is not there."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several processes on Cloud TPU, GKE, SLURM or Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, for clusters that JAX does not recognise."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, with --coordinator_address."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0 on, with --coordinator_address."
)
_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for the other processes."
)


def launch(
    main: Callable[[list[str]], int], *, positional: bool = False, fields: bool = False
) -> None:
    """Parses flags, connects the processes, runs `main` and exits with the status it returns.

    Args:
      main: gets the arguments that are not flags.
      positional, fields: as in `cli.parse`.
    """
    app.call_after_init(connect)  # absl turns on Python's fault handler in between
    with _leaving(), cli.one_line_errors({NonFiniteLoss: DIVERGED}):
        app.run(main, flags_parser=partial(_parse, positional=positional, fields=fields))


def check_grid(workdir: str, grid: Iterable[tuple[Experiment, str]]) -> None:
    """Refuses to train below a run folder, where a report does not look for runs.

    Args:
      workdir: the folder of the grid.
      grid: as `run_cells` takes it.

    Raises:
      FolderError: if the workdir, or a folder between it and a run, is a run folder.
    """
    root = epath.Path(workdir)
    above = {parent: None for _, folder in grid for parent in epath.Path(folder).parents}
    for parent in above:
        if parent.is_relative_to(root) and (parent / "config.json").exists():
            raise FolderError(
                f"{parent} is a run folder itself (it has config.json), so that a report would not "
                "show the runs below it; take another --workdir"
            )


def run_cells(grid: Iterable[tuple[Experiment, str]]) -> int:
    """Trains each experiment in its folder, unless it is finished; returns the exit status.

    A run that diverges is a result: it is printed, and the next one starts.
    """
    with Preemption() as preemption:
        for experiment, folder in grid:
            try:
                outcome = train(experiment, folder, override_config=OVERRIDE.value)
                status = status_of(experiment, folder, outcome)
            except NonFiniteLoss as error:
                print(f"diverged: {folder}: {error}")
                status = 0
            if status or preemption.requested():
                return status or STATUS[Outcome.PREEMPTED]
    return 0


def status_of(experiment: Experiment, workdir: str, outcome: Outcome) -> int:
    """The exit status of a run; prints how it ended."""
    hint = "; start the same command again to continue" if STATUS[outcome] in GO_ON else ""
    print(f"{experiment.name}: {outcome.value} ({workdir}){hint}", file=sys.stderr)
    return STATUS[outcome]


def experiment_of(config: ConfigDict) -> Experiment:
    """The experiment of a config with the flags of this file applied.

    A SIGTERM or Ctrl-C while data is downloaded or read ends the process.
    """
    obey_data_flags(config)
    with stopping_at_once(STATUS[Outcome.PREEMPTED]):
        experiment = make_experiment(config)
    if _STOP.value:  # without a mark in the folder's config
        execution = replace(experiment.execution, stop_at_growth=True)
        experiment = replace(experiment, execution=execution)
    return experiment


def obey_data_flags(config: ConfigDict) -> None:
    """Sets `run.data_dir` by --data_dir, and prepares the data with --download.

    A function of one's own that reads tensorflow_datasets finds the folder as TFDS_DATA_DIR, and
    prepares the data itself. Where no flags were parsed, nothing is changed.
    """
    if not flags.FLAGS.is_parsed():
        return
    if _DATA_DIR.value is not None:
        with config.unlocked():
            config.run.data_dir = _DATA_DIR.value
        if _DATA_DIR.value:
            os.environ["TFDS_DATA_DIR"] = os.path.expanduser(_DATA_DIR.value)
    name = name_of_tfds(config.data.name) if _DOWNLOAD.value else None
    if name is not None:
        with stopping_at_once(STATUS[Outcome.PREEMPTED]):
            download(name, config.run.data_dir)


def _parse(argv: list[str], positional: bool, fields: bool) -> list[str]:
    rest = cli.parse(argv, positional, fields)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        # Orbax logs every step of a save, and a traceback where we print one line.
        logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
        # asyncio prints a traceback for each further file that Orbax could not write.
        getLogger("asyncio").setLevel("CRITICAL")
        sys.unraisablehook = _unraisablehook
    return rest


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Lets the process end in time, whatever other processes or threads do."""
    status: Any = 1
    try:
        yield
    except SystemExit as leaving:
        status = leaving.code
        raise
    finally:
        if status not in STATUS.values():
            # JAX lets a process leave when all the others do; one that fails alone cannot wait.
            # Nor for threads of Orbax, which wait for minutes where a write has failed.
            _after(GRACE_SECONDS, lambda: os._exit(status))
        else:
            if jax.distributed.is_initialized():
                _disconnect()
            if status in GO_ON:
                # Everything is written. Python would wait for a compilation under way, which may
                # take longer than whoever sent the signal.
                sys.stdout.flush()
                os._exit(status)


def _disconnect() -> None:
    """Leaves the other processes when all of them are ready to.

    JAX's preemption service passes a SIGTERM on within a second and then waits for an answer of
    every process, for minutes. One that has left does not answer, so none leaves before the others
    have ended too, and then a SIGTERM has nothing to stop.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    meet = ocp.multihost.get_barrier_sync_fn()
    meet(key="batchgrow/end", timeout_ms=1000 * _TIMEOUT.value)
    jax.distributed.shutdown()


def _unraisablehook(unraisable: Any) -> None:
    """Spares the tracebacks of TensorStore's other files when one of them has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def connect() -> None:
    """Joins the other processes, if there are any.

    Raises:
      ValueError: if the flags do not go together, or name no cluster.
      ConnectionError: if the others cannot be reached: a later start may find them.
    """
    explicit = address, count, index = (
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
    )
    if explicit == (None, None, None) and not _DISTRIBUTED.value:
        return
    if not _DISTRIBUTED.value and None in explicit:
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id go together; "
            "or use --distributed on a cluster that JAX knows"
        )
    if address is not None and count is not None and index is not None:
        _check_connection(address, count, index)
    # Left to itself JAX aborts the process where it can reach nobody, and so does one that dies
    # later; Python's own account of the abort would only bury what JAX says.
    faulthandler.disable()
    watch = _after(_TIMEOUT.value, _give_up)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # JAX waits without asking Python
    try:
        jax.distributed.initialize(
            *explicit,
            initialization_timeout=_TIMEOUT.value + HEARTBEAT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else ConnectionError
        raise kind(_cannot_join(first_line(error))) from error
    finally:
        watch.cancel()
        signal.signal(signal.SIGINT, before)


def _check_connection(address: str, num_processes: int, process_id: int) -> None:
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise ValueError(f"--coordinator_address {address!r} must be HOST:PORT of process 0")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id {process_id} must be 0 or more and less than --num_processes "
            f"{num_processes}"
        )


def _after(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def _give_up() -> None:
    os._exit(cli.complain(_cannot_join(f"no answer in {_TIMEOUT.value} s"), 1))


def _cannot_join(reason: str) -> str:
    if _DISTRIBUTED.value:
        return f"--distributed: cannot join the other processes ({reason}); is this a cluster?"
    return (
        f"--coordinator_address {_COORDINATOR.value}: process {_PROCESS_ID.value} of "
        f"{_NUM_PROCESSES.value} cannot join ({reason}); check that all processes were started "
        "and that the address is reachable"
    )
