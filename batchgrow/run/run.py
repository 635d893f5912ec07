"""A run: its position, the files that it writes, and when it stops."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from batchgrow.compile import CompileAhead
from batchgrow.experiment import Experiment, NonFiniteLoss, Outcome
from batchgrow.layout import replicate
from batchgrow.plan import Point, Segment
from batchgrow.run.agreement import check_agreement, check_shared, facts_of, total
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.run.folder import (
    FORMAT,
    FolderError,
    check_config,
    claim,
    read_json,
    write_json,
)
from batchgrow.run.leaks import without_metrics
from batchgrow.run.log import RunLog
from batchgrow.run.noise_meter import NoiseMeter
from batchgrow.run.progress import Progress
from batchgrow.run.signals import Preemption
from batchgrow.run.summary import compared, hyper_parameters, summarize
from batchgrow.run.timers import Clock
from batchgrow.step import TrainState

if TYPE_CHECKING:
    from batchgrow.engine import Engine


class Due(NamedTuple):
    """What is due after a dispatch."""

    evaluation: bool
    row: bool
    checkpoint: bool


class Run:
    """One run in its folder. A context manager; `restore` comes first, then `begin`.

    Process 0 writes; the others follow.

    Args:
      experiment: what is trained.
      workdir: the run folder. It is created if it does not exist.
      mesh: the devices.
      override_config: accept other values of fields under `run` than those of the folder.

    Attributes:
      is_finished: whether the folder holds this run, finished.
      examples_seen: the position of the run.
      history: the segments so far, the current one last.
      measured: the newest training metrics, equal on all processes and after a resume.

    Raises:
      FolderError: if the folder cannot be used.
      ValueError: if the processes of a run differ.
    """

    def __init__(
        self, experiment: Experiment, workdir: str, mesh: Mesh, *, override_config: bool = False
    ):
        self._experiment = experiment
        self._settings = json.loads(json.dumps(experiment.settings))
        self._plan = experiment.plan
        self._mesh = mesh
        self._is_writer = jax.process_index() == 0
        self.examples_seen = self._before = 0
        self.history: list[Segment] = []
        self.measured: dict[str, float] = {}
        self._noise = NoiseMeter(experiment)
        self._compiled: dict[str, dict[str, Any]] = {}
        self._replaced_before = 0
        self._clock = Clock()
        self._mark: Any = None
        self._log: RunLog | None = None
        self._has_begun = False
        self._save_soon = False
        self._keeps = False
        self._traced: dict[str, float] = {}
        with ExitStack() as stack:
            self._folder = stack.enter_context(claim(workdir, is_writer=self._is_writer))
            check_shared(self._folder)
            check_agreement(facts_of(experiment, self._settings, self._folder))
            self._preemption = stack.enter_context(Preemption())
            config, plan, summary = (
                read_json(self._folder / f"{name}.json") for name in ("config", "plan", "summary")
            )
            if config is not None:
                check_config(
                    self._folder,
                    config,
                    self._settings,
                    override=override_config,
                    defaults=experiment.defaults,
                )
            self.is_finished = None not in (config, plan, summary)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stack.__exit__(kind, error, traceback)
        if isinstance(error, ValueError) and self._has_begun:
            # Errors of the user were found before this point.
            raise RuntimeError(f"a fault of the program, not of its input: {error}") from error

    def restore(self, like: TrainState) -> TrainState | None:
        """The state of the newest checkpoint, or None for a new run.

        Args:
          like: `jax.ShapeDtypeStruct`s with the shardings of the state.

        Raises:
          FolderError: if no checkpoint can be used, or another plan led to it.
        """
        self._stack.enter_context(without_metrics())
        self._checkpoints = self._stack.enter_context(
            Checkpoints(
                self._folder,
                keep=self._experiment.execution.keep_checkpoints,
                metric=self._experiment.task.metrics[0],
                config=self._settings,
                defaults=self._experiment.defaults,
            )
        )
        restored = self._checkpoints.restore(like)
        if restored is None:
            return None
        self.examples_seen, state, notes = restored
        self.history = [Segment(*segment) for segment in notes["history"]]
        known = self._plan.known(self.history)[: len(self.history)]
        if not _same_segments(known, self.history):
            raise FolderError(
                f"{self._folder} was trained by another plan, although by the same config; "
                "continue with the version of batchgrow that made it, or choose another workdir"
            )
        self.measured = notes["measured"]
        self._compiled = notes["compiled"]
        self._replaced_before = notes.get("num_replaced", 0)  # none in the first checkpoints of 0.2
        self._noise.restore(notes["noise"])
        self._clock = Clock(notes["seconds"])
        self._mark = notes["log"]
        return state

    def begin(self) -> None:
        """Opens the log and records what is trained."""
        self._has_begun = True
        e = self._experiment
        if self._is_writer:
            metrics = [dataclasses.asdict(metric) for metric in e.task.metrics]
            task = {"format": FORMAT, "name": type(e.task).__name__, "metrics": metrics}
            write_json(self._folder / "task.json", task)
            write_json(self._folder / "config.json", self._settings)
            self._write_plan()
            self._log = self._stack.enter_context(
                RunLog(self._folder, mark=self._mark, tensorboard=e.execution.tensorboard)
            )
            table = self._plan.table(self.history, num_devices=self._mesh.size)
            self._log.text("plan", f"```\n{table}\n```")
        shows = e.execution.progress and self._is_writer
        self._progress = self._stack.enter_context(
            Progress(self._plan.end_examples, self.examples_seen, e.name, shows, e.task.metrics)
        )
        if self.examples_seen:
            self._progress.say(f"resumed at {self.examples_seen} examples ({self._folder})")

    @property
    def current(self) -> Segment | None:
        """The segment that the next update belongs to; None if it is not decided yet."""
        if self.history and self.examples_seen < self.history[-1].end_examples:
            return self.history[-1]
        return None

    def batch_sizes(self) -> list[int]:
        """The batch sizes that may still come, the nearest first."""
        current = [self.current.batch_size] if self.current else []
        return list(dict.fromkeys([*current, *self._plan.batch_sizes(self.history)]))

    def next_segment(self) -> Segment | None:
        """The current segment or, if it is complete, the next one; None at the end of the run."""
        if self.current is None:
            segment = self._plan.next(self.history, self.measured)
            if segment is None:
                return None
            late = self._plan.known(self.history) == tuple(self.history)
            grows = bool(self.history) and segment.batch_size != self.history[-1].batch_size
            self._save_soon = late and grows  # so that a resumed run takes the same decision
            self.history.append(segment)
            if self._save_soon:
                self._progress.say(f"the batch grows to {segment.batch_size}: {self._reason()}")
                if self._is_writer:
                    self._write_plan()
        return self.current

    @contextlib.contextmanager
    def waiting_for(self, batch_size: int, updates: CompileAhead[int]) -> Iterator[None]:
        """Counts the time in the context as waiting for the compiled update of a batch size."""
        updates.start(batch_size)
        if updates.finished(batch_size) is None:
            self._progress.say(f"compiling for batch size {batch_size}")
        before = self._clock.seconds["compile"]
        with self._clock.timer("compile"):
            yield
        self._compiled[str(batch_size)] = {
            "compile_seconds": updates.times[batch_size].compile_seconds,
            "cache_hit": updates.times[batch_size].cache_hit,
            "waited_seconds": self._clock.seconds["compile"] - before,
            "num_microbatches": updates.start(batch_size).result().layout.num_microbatches,
        }

    def dispatches(self, segment: Segment, most: int) -> Iterator[list[Point]]:
        """The updates of a segment from here on, in groups of at most `most`.

        A group also ends where something is due.
        """
        points = self._plan.segment_points(self.history, self.examples_seen)
        while self.examples_seen < segment.end_examples:
            stop = self._experiment.cadence.next_stop(self.examples_seen, segment)
            count = min(most, -(-(stop - self.examples_seen) // segment.batch_size))
            yield list(islice(points, count))

    def input_timer(self, state: TrainState) -> contextlib.AbstractContextManager[None]:
        """Counts the time in the context as input, unless the devices are still computing then."""
        before: Any = state.sums["loss"]
        return self._clock.timer("input", counts=before.is_ready)

    def advance(self, points: Sequence[Point]) -> None:
        """Notes that these updates were dispatched."""
        self._before, self.examples_seen = self.examples_seen, points[-1].end_examples
        self._progress.advance(self.examples_seen - self._before)

    def measure(self, engine: "Engine", state: TrainState) -> Due:
        """Measures what the plan decides by, and returns what is due after the last dispatch."""
        cadence = self._experiment.cadence
        if self._has_passed(cadence.noise):
            self._measure_noise(engine, state)
        traced = cadence.next_trace(self._before, self.history[-1]) <= self.examples_seen
        # A row never mixes two batch sizes.
        row = self.current is None or traced or self._has_passed(cadence.log, cadence.evaluate)
        self._keeps = self._experiment.execution.keep_traced and (traced or self.current is None)
        if row:
            self._traced = engine.trace(state)
            self.measured = self._experiment.task.summarize(_sums(state)) | self._noise.columns()
        at_end = self._is_at_end()
        evaluation = at_end or self._has_passed(cadence.evaluate)
        soon = self._save_soon or self._keeps
        checkpoint = at_end or soon or self._has_passed(cadence.checkpoint)
        self._save_soon = False
        return Due(evaluation, row, checkpoint)

    def _has_passed(self, *intervals: int) -> bool:
        """Whether the last dispatch reached a multiple of one of the intervals."""
        return any(self._before // every < self.examples_seen // every for every in intervals)

    def _measure_noise(self, engine: "Engine", state: TrainState) -> None:
        """Measures the gradient noise, and adds it to its averages."""
        jax.block_until_ready(state.params)
        with self._clock.timer("compile"):
            executable = engine.noise().result()
        with self._clock.timer("noise"):
            norms = engine.measure_noise(executable, state, self.examples_seen)
        self._noise.add(norms)

    def evaluate(self, engine: "Engine", state: TrainState) -> dict[str, float]:
        """The metrics of the test set, by column of a row."""
        # Earlier dispatches are training. Wait for them before the evaluation's time starts.
        jax.block_until_ready(state.params)
        with self._clock.timer("compile"):
            executable = engine.evaluation().result()
        with self._clock.timer("eval"):
            metrics = engine.evaluate(executable, state)
        return {f"test_{name}": value for name, value in metrics.items()}

    def write_row(self, state: TrainState, point: Point, test: dict[str, float]) -> TrainState:
        """Writes a row for the updates since the last one.

        Args:
          state: the state after `point`.
          point: the last update.
          test: the columns of an evaluation, or none.

        Returns:
          The state with its metric sums at zero.

        Raises:
          NonFiniteLoss: if the loss is not finite, on every process alike.
        """
        noise = self._noise.columns()
        metrics = {k: value for k, value in self.measured.items() if k not in noise}
        row = {
            "examples_seen": self.examples_seen,
            "updates": point.update + 1,
            "epoch": self.examples_seen / self._plan.recipe.num_examples,
            **self._tokens_seen(),
            "segment": point.segment,
            "batch_size": point.batch_size,
            "learning_rate": point.learning_rate,
            "momentum": point.momentum,
            **point.noise,
            **{f"train_{name}": value for name, value in metrics.items()},
            **test,
            **noise,
            **self._traced,
            **self._clock.columns(float(state.sums["count"])),
        }
        self._check_finite(metrics["loss"], point)
        if self._is_at_end():  # No later update shows the effect of the last one.
            self._check_finite(test["test_loss"], point)
        if self._log is not None:
            self._log.write(row)
        self._progress.row(row)
        zeros = jax.tree.map(np.zeros_like, jax.device_get(state.sums))
        changed: Any = state
        return changed.replace(sums=replicate(zeros, self._mesh))

    def _tokens_seen(self) -> dict[str, int]:
        tokens = self._plan.recipe.tokens_per_example
        return {} if tokens is None else {"tokens_seen": tokens * self.examples_seen}

    def reason_to_stop(self, asked: bool) -> Outcome | None:
        """Returns why the run stops here, or None. Every process asks once after each dispatch.

        Args:
          asked: whether the caller wants it to stop.
        """
        asked = self._preemption.requested() or asked
        if self._is_at_end():
            return None
        if self._experiment.execution.stop_at_growth and self.current is None:
            following = self._plan.next(self.history, self.measured)
            if following and following.batch_size != self.history[-1].batch_size:
                return Outcome.GROWTH
        return Outcome.PREEMPTED if asked else None

    def save(
        self, engine: "Engine", state: TrainState, point: Point, test: dict[str, float]
    ) -> None:
        """Saves a checkpoint, in the background.

        Raises:
          NonFiniteLoss: if the loss is not finite: a diverged state never replaces a good one.
          OSError: if this or an earlier checkpoint could not be written.
        """
        self._check_finite(float(state.sums["loss"]), point)
        jax.block_until_ready(state.params)
        with self._clock.timer("checkpoint"):
            self._clock.total()
            notes = {
                "history": self.history,
                "measured": self.measured,
                "noise": self._noise.notes(),
                "compiled": self._compiled,
                "num_replaced": self._num_replaced(engine),
                "seconds": self._clock.seconds,
                "log": self._log.mark() if self._log is not None else None,
            }
            score = test.get(f"test_{self._experiment.task.metrics[0].name}")
            self._checkpoints.save(self.examples_seen, state, notes, score, self._keeps)

    def stop(self, outcome: Outcome) -> Outcome:
        """Returns the outcome when every checkpoint is on disk."""
        self._checkpoints.wait()
        return outcome

    def finish(self, engine: "Engine") -> Outcome:
        """Writes the summary; returns when everything is on disk."""
        self._checkpoints.wait()
        num_replaced = self._num_replaced(engine)
        if self._log is not None:
            e, num_updates = self._experiment, sum(s.num_updates for s in self.history)
            rows = list(self._log.rows())
            summary = summarize(
                e, self._mesh, rows, self.history, self._compiled, self._clock, num_replaced
            )
            self._log.finish(
                hyper_parameters(e, self._settings, num_updates), compared(e.task, summary)
            )
            self._write_plan()
            write_json(self._folder / "summary.json", summary)
        return Outcome.FINISHED

    def _num_replaced(self, engine: "Engine") -> int:
        """Bad records that all processes have replaced since the run began."""
        mine = getattr(engine.feed, "num_replaced", None)  # not every feed can replace any
        return self._replaced_before + (0 if mine is None else total(mine))

    def _is_at_end(self) -> bool:
        complete = self.current is None and bool(self.history)
        return complete and self._plan.next(self.history, self.measured) is None

    def _reason(self) -> str:
        """The measurements behind the decision of a plan that decides late."""
        whole = {name: value for name, value in self.measured.items() if "/" not in name}
        return ", ".join(f"{name} {value:.4g}" for name, value in whole.items())

    def _write_plan(self) -> None:
        plan = self._plan.to_dict(self.history, num_devices=self._mesh.size)
        write_json(self._folder / "plan.json", plan)

    def _check_finite(self, loss: float, point: Point) -> None:
        """Raises NonFiniteLoss, on every process alike, if the loss up to `point` is not finite."""
        if math.isfinite(loss):
            return
        if self._log is None:
            raise NonFiniteLoss("the loss is not finite; see the message of process 0")
        last = self._log.last
        good = "there is no good row before"
        if last is not None:
            good = (
                f"the last good row, at update {last['updates']}: train_loss "
                f"{last['train_loss']:.4g}, learning_rate {last['learning_rate']:.4g}"
            )
        raise NonFiniteLoss(
            f"the loss is {loss} between updates {last['updates'] + 1 if last else 1} and "
            f"{point.update + 1} (epoch {self.examples_seen / self._plan.recipe.num_examples:.2f}, "
            f"batch size {point.batch_size}, learning rate {point.learning_rate:.4g}); {good}; "
            "lower recipe.learning_rate or add recipe.warmup_epochs, in a new workdir"
        )


def _sums(state: TrainState) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(state.sums).items()}


def _same_segments(a: Sequence[Segment], b: Sequence[Segment]) -> bool:
    """Whether they are equal; the last bit of a momentum may differ on another machine."""
    return len(a) == len(b) and all(
        x._replace(momentum=0.0) == y._replace(momentum=0.0)
        and math.isclose(x.momentum, y.momentum)
        for x, y in zip(a, b, strict=True)
    )
