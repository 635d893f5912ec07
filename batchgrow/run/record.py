"""The record of a run: what it writes for its readers, which is everything but checkpoints."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from etils import epath
from jax.sharding import Mesh

from batchgrow.experiment import Experiment, NonFiniteLoss
from batchgrow.plan import Point, Segment
from batchgrow.run.folder import FORMAT, Config, write_json
from batchgrow.run.log import LogMark, Row, RunLog
from batchgrow.run.summary import compared, hyper_parameters, summarize
from batchgrow.run.timers import Clock


class RunRecord:
    """Writes `task.json`, `config.json`, `plan.json`, the log and, at the end, `summary.json`.

    A context manager; `begin` comes first.

    Args:
      folder: the run folder.
      experiment: what is trained.
      settings: its config, as plain nested dicts (JSON).
      data: the fingerprint of each part that is held in memory.
      mesh: the devices.
      enabled: False writes nothing. So it is on all processes but process 0.
    """

    def __init__(
        self,
        folder: epath.Path,
        experiment: Experiment,
        settings: Config,
        data: Mapping[str, str],
        mesh: Mesh,
        enabled: bool,
    ):
        self._folder = folder
        self._experiment = experiment
        self._settings = settings
        self._data = dict(data)
        self._mesh = mesh
        self._enabled = enabled
        self._log: RunLog | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stack.__exit__(kind, error, traceback)

    def begin(
        self, history: Sequence[Segment], mark: LogMark | None, cpu_kernels: str | None
    ) -> None:
        """Records what is trained, and opens the log.

        Args:
          history: the segments so far.
          mark: the mark of the log in the checkpoint that the run resumes from, or None.
          cpu_kernels: as in `write_task`.

        Raises:
          OSError: if a file cannot be written.
        """
        if not self._enabled:
            return
        self.write_task(cpu_kernels)
        write_json(self._folder / "config.json", self._settings)
        self.write_plan(history)
        tensorboard = self._experiment.execution.tensorboard
        log = RunLog(self._folder, mark=mark, tensorboard=tensorboard)
        self._log = self._stack.enter_context(log)
        plan = self._experiment.plan
        self._log.text("plan", f"```\n{plan.table(history, num_devices=self._mesh.size)}\n```")

    def write_task(self, cpu_kernels: str | None) -> None:
        """Writes what is trained to `task.json`.

        Args:
          cpu_kernels: the kernels that updates are compiled with; None if that is not decided.

        Raises:
          OSError: if it cannot be written.
        """
        if not self._enabled:
            return
        task = self._experiment.task
        facts = {
            "format": FORMAT,
            "name": type(task).__name__,
            "metrics": [dataclasses.asdict(metric) for metric in task.metrics],
            "data": self._data,
            "cpu_kernels": cpu_kernels,
        }
        write_json(self._folder / "task.json", facts)

    def write_plan(self, history: Sequence[Segment]) -> None:
        """Writes the segments that are decided to `plan.json`.

        Args:
          history: the segments so far.

        Raises:
          OSError: if it cannot be written.
        """
        if self._enabled:
            plan = self._experiment.plan.to_dict(history, num_devices=self._mesh.size)
            write_json(self._folder / "plan.json", plan)

    def write_row(self, row: Row) -> None:
        """Appends a row to the log.

        Raises:
          OSError: if it cannot be written.
        """
        if self._log is not None:
            self._log.write(row)

    def mark(self) -> LogMark | None:
        """Returns the mark of the log for a checkpoint; None where nothing is written.

        Raises:
          OSError: if rows before it could not be written.
        """
        return self._log.mark() if self._log is not None else None

    def divergence(self, loss: float | None, point: Point) -> NonFiniteLoss:
        """Returns the error that names the updates since the last row, and that row.

        Args:
          loss: the loss that is not finite; None if a parameter is not.
          point: the last update.
        """
        if self._log is None:
            return NonFiniteLoss("the run has diverged; see the message of process 0")
        last = self._log.last
        found = f"a parameter is not finite after update {point.update + 1}"
        if loss is not None:
            first = last["updates"] + 1 if last else 1
            found = f"the loss is {loss} between updates {first} and {point.update + 1}"
        good = "there is no good row before"
        if last is not None:
            good = (
                f"the last good row, at update {last['updates']}: train_loss "
                f"{last['train_loss']:.4g}, learning_rate {last['learning_rate']:.4g}"
            )
        epoch = point.end_examples / self._experiment.plan.recipe.num_examples
        return NonFiniteLoss(
            f"{found} (epoch {epoch:.2f}, batch size {point.batch_size}, learning rate "
            f"{point.learning_rate:.4g}); {good}; lower recipe.learning_rate or add "
            "recipe.warmup_epochs, in a new workdir"
        )

    def finish(
        self,
        history: Sequence[Segment],
        compiled: Mapping[str, Mapping[str, Any]],
        clock: Clock,
        num_replaced: int,
    ) -> None:
        """Writes the summary; returns when the record is on disk.

        `summary.json` comes last: a folder that has it holds a finished run.

        Args:
          history, compiled, clock, num_replaced: as in `summary.summarize`.

        Raises:
          OSError: if a file cannot be written.
        """
        if self._log is None:
            return
        e, rows = self._experiment, list(self._log.rows())
        summary = summarize(e, self._mesh, rows, history, compiled, clock, num_replaced)
        self._log.finish(
            hyper_parameters(e, self._settings, summary["num_updates"]), compared(e.task, summary)
        )
        self.write_plan(history)
        write_json(self._folder / "summary.json", summary)
