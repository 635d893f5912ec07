"""A run: what it measures, writes and saves, how it resumes, and when it stops."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from batchgrow import kernels
from batchgrow.compile import CompileAhead
from batchgrow.data.datasets import InMemory
from batchgrow.engine import Engine
from batchgrow.experiment import Experiment, Outcome
from batchgrow.layout import replicate
from batchgrow.plan import Point, Segment
from batchgrow.run.agreement import check_agreement, check_shared, fingerprint, run_facts, total
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.run.folder import FolderError, check_config, claim, read_json
from batchgrow.run.leaks import without_metrics
from batchgrow.run.noise_meter import NoiseMeter
from batchgrow.run.position import Due, Position
from batchgrow.run.progress import Progress
from batchgrow.run.record import RunRecord
from batchgrow.run.signals import Preemption
from batchgrow.run.timers import Clock
from batchgrow.step import TrainState


class Run:
    """One run in its folder. A context manager; `restore` comes first, then `begin`.

    Process 0 writes; the others follow.

    Args:
      experiment: what is trained.
      workdir: the run folder. It is created if it does not exist.
      mesh: the devices.
      override_config: accept other values of fields under `run` than those of the folder, and
        other data.

    Attributes:
      is_finished: whether the folder holds this run, finished.
      position: where the run is in its plan.
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
        self.position = Position(experiment)
        self.measured: dict[str, float] = {}
        self._noise = NoiseMeter(experiment)
        self._compiled: dict[str, dict[str, Any]] = {}
        self._kernels: str | None = None
        self._replaced_before = 0
        self._clock = Clock()
        self._mark: Any = None
        self._has_trained = False
        self._data = {
            part: fingerprint(data)
            for part, data in (("train", experiment.train_data), ("test", experiment.test_data))
            if isinstance(data, InMemory)
        }
        self._fits: set[str] = set()
        self._traced: dict[str, float] = {}
        self._are_finite = jax.jit(_are_finite)
        with ExitStack() as stack:
            self._folder = stack.enter_context(claim(workdir, is_writer=self._is_writer))
            check_shared(self._folder)
            check_agreement(run_facts(experiment, self._settings, self._folder))
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
                if not override_config:
                    self._check_data()
            self._kernels = (read_json(self._folder / "task.json") or {}).get("cpu_kernels")
            self.is_finished = None not in (config, plan, summary)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stack.__exit__(kind, error, traceback)
        if isinstance(error, ValueError) and self._has_trained:
            # Errors of the user were found before, those of a model while it was traced.
            raise RuntimeError(f"a fault of the program, not of its input: {error}") from error

    def _check_data(self) -> None:
        """Refuses a folder whose run had other data in memory."""
        before = (read_json(self._folder / "task.json") or {}).get("data", {})
        for part, data in self._data.items():
            if before.get(part, data) != data:
                raise FolderError(
                    f"{self._folder} holds a run with other {part} data ({before[part]}; now "
                    f"{data}); bring them back, choose another workdir, or go on with "
                    "--override_config, for example if images are decoded in another way here"
                )

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
                is_own=True,
            )
        )
        restored = self._checkpoints.restore(like)
        if restored is None:
            return None
        examples_seen, state, notes = restored
        history = [Segment(*segment) for segment in notes["history"]]
        if not self.position.restore(examples_seen, history):
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
        """Opens the log and records what is trained.

        Raises:
          OSError: if a file cannot be written.
        """
        e, seen = self._experiment, self.position.examples_seen
        self._record = self._stack.enter_context(
            RunRecord(self._folder, e, self._settings, self._data, self._mesh, self._is_writer)
        )
        self._record.begin(self.position.history, self._mark, self._kernels)
        shows = e.execution.progress and self._is_writer
        self._progress = self._stack.enter_context(
            Progress(self._plan.end_examples, seen, e.name, shows, e.task.metrics)
        )
        if seen:
            self._progress.say(f"resumed at {seen} examples ({self._folder})")
        else:
            self._clock.lap()  # Nothing was trained so far.

    def choose_kernels(self, engine: Engine, memory: kernels.Memory) -> None:
        """Lets the engine use the kernels of this run, and records which.

        The field `run.cpu_kernels` names them. If it is "auto", a resumed run keeps its kernels,
        and a new, long run takes the fastest on this machine.

        Args:
          engine: compiles the updates; nothing is compiled yet.
          memory: what was measured on this machine before.

        Raises:
          OSError: if the record cannot be written.
          ValueError: if the processes of a run would use different kernels.
        """
        asked = self._experiment.execution.cpu_kernels
        if asked != "auto":
            self._kernels = asked
        elif self._kernels is None:
            is_new = self.position.examples_seen == 0
            self._kernels = self._fastest_kernels(engine, memory) if is_new else kernels.DEFAULT
        elif self._kernels not in kernels.available(self._mesh):
            self._progress.say(f"no {self._kernels} kernels here; the last bits will differ")
            self._kernels = kernels.DEFAULT
        check_agreement({"the CPU kernels": self._kernels}, "set run.cpu_kernels=xla")
        engine.use_kernels(self._kernels)
        self._record.write_task(self._kernels)

    def _fastest_kernels(self, engine: Engine, memory: kernels.Memory) -> str:
        batch_size = self.position.batch_sizes()[0]
        with self._clock.timer("compile"):
            is_worth = kernels.is_worth_measuring(self._experiment, self._mesh)
            if not is_worth or not memory.is_writable():
                return kernels.DEFAULT
            key = kernels.key_of(engine.compiler.lower(batch_size), self._mesh)
            chosen = memory.find(key)
            if chosen is None:
                self._progress.say("measuring which CPU kernels are faster (run.cpu_kernels)")
                chosen = memory.keep(key, engine.fastest_kernels(batch_size))
        self._progress.say(f"takes XLA's {'default' if chosen == 'xla' else chosen} CPU kernels")
        return chosen

    def next_segment(self) -> Segment | None:
        """The current segment or, if it is complete, the next one; None at the end of the run."""
        segment = self.position.next_segment(self.measured)
        if segment is not None and self.position.grows_late:
            self._progress.say(f"the batch grows to {segment.batch_size}: {self._reason()}")
            self._record.write_plan(self.position.history)
        elif segment is not None and self.position.begins_late:
            self._record.write_plan(self.position.history)
        return segment

    @contextlib.contextmanager
    def waiting_for(self, batch_size: int, updates: CompileAhead[int]) -> Iterator[None]:
        """Counts the time in the context as waiting for the compiled update of a batch size."""
        updates.start(batch_size)
        if updates.finished(batch_size) is None:
            self._progress.say(f"compiling for batch size {batch_size}")
        waited = self._compiled.get(str(batch_size), {}).get("waited_seconds", 0.0)
        waited -= self._clock.seconds["compile"]
        with self._clock.timer("compile"):
            yield
        self._compiled[str(batch_size)] = {
            "compile_seconds": updates.times[batch_size].compile_seconds,
            "cache_hit": updates.times[batch_size].cache_hit,
            "waited_seconds": waited + self._clock.seconds["compile"],
            "num_microbatches": updates.start(batch_size).result().layout.num_microbatches,
        }

    def input_timer(self, state: TrainState) -> contextlib.AbstractContextManager[None]:
        """Counts the time in the context as input, unless the devices are still computing then."""
        before: Any = state.sums["loss"]
        return self._clock.timer("input", counts=before.is_ready)

    def advance(self, points: Sequence[Point]) -> None:
        """Notes that these updates were dispatched."""
        self._has_trained = True
        self.position.advance(points)
        self._progress.advance(sum(point.batch_size for point in points))

    def measure(self, engine: Engine, state: TrainState) -> Due:
        """Measures what the plan decides by, and returns what is due after the last dispatch."""
        due = self.position.due()
        if due.noise:
            self._measure_noise(engine, state, due.noise)
        if due.row:
            self._traced = engine.trace(state)
            found = self._experiment.task.summarize(_sums(state))
            self.measured = {k: float(v) for k, v in found.items()} | self._noise.columns()
        if self.position.is_at_end(self.measured):  # A plan may decide so by these metrics.
            return due._replace(evaluation=True, checkpoint=True)
        return due

    def _measure_noise(self, engine: Engine, state: TrainState, num_intervals: int) -> None:
        """Measures the gradient noise, and adds it to its averages (see `NoiseMeter.add`)."""
        jax.block_until_ready(state.params)
        with self._clock.timer("compile"):
            executable = engine.noise().result()
        with self._clock.timer("noise"):
            norms = engine.measure_noise(executable, state, self.position.examples_seen)
        self._noise.add(norms, num_intervals)

    def evaluate(self, engine: Engine, state: TrainState) -> dict[str, float]:
        """The metrics of the test set, by column of a row."""
        # Earlier dispatches are training. Wait for them before the evaluation's time starts.
        jax.block_until_ready(state.params)
        with self._clock.timer("compile"):
            executable = engine.evaluation().result()
        self.check_fit("the size of an evaluation batch", engine.evaluation_size)
        with self._clock.timer("eval"):
            metrics = engine.evaluate(executable, state)
        return {f"test_{name}": value for name, value in metrics.items()}

    def check_fit(self, what: str, chosen: object) -> None:
        """Checks, once, that every process has chosen the same. Each lets its own compiler decide.

        Raises:
          MemoryError: if they differ.
        """
        if what in self._fits:
            return
        self._fits.add(what)
        try:
            check_agreement({what: str(chosen)}, "set run.max_microbatch_size and eval_batch_size")
        except ValueError as error:
            raise MemoryError(str(error)) from error

    def write_row(self, state: TrainState, point: Point, test: dict[str, float]) -> TrainState:
        """Writes a row for the updates since the last one.

        Args:
          state: the state after `point`.
          point: the last update.
          test: the columns of an evaluation, or none. The last row of the run has them.

        Returns:
          The state with its metric sums at zero.

        Raises:
          NonFiniteLoss: if the loss is not finite, on every process alike.
          OSError: if the row cannot be written.
        """
        seen, is_last = self.position.examples_seen, self.position.is_at_end(self.measured)
        noise = self._noise.columns()
        metrics = {k: value for k, value in self.measured.items() if k not in noise}
        tokens = self._plan.recipe.tokens_per_example
        row = {
            "examples_seen": seen,
            "updates": point.update + 1,
            "epoch": seen / self._plan.recipe.num_examples,
            **({} if tokens is None else {"tokens_seen": tokens * seen}),
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
        if is_last:  # No later update shows the effect of the last one.
            self._check_finite(test["test_loss"], point)
        self._record.write_row(row)
        self._progress.row(row)
        zeros = jax.tree.map(np.zeros_like, jax.device_get(state.sums))
        changed: Any = state
        return changed.replace(sums=replicate(zeros, self._mesh))

    def reason_to_stop(self, asked: bool) -> Outcome | None:
        """Returns why the run stops here, or None. Every process asks once after each dispatch.

        Args:
          asked: whether the caller wants it to stop.
        """
        asked = self._preemption.requested() or asked
        if self.position.is_at_end(self.measured):
            return None
        if self._experiment.execution.stop_at_growth and self.position.grows_next(self.measured):
            return Outcome.GROWTH
        return Outcome.PREEMPTED if asked else None

    def save(self, engine: Engine, state: TrainState, point: Point, test: dict[str, float]) -> None:
        """Saves a checkpoint, in the background.

        Args:
          engine: its feed knows how many bad records were replaced.
          state: the state after `point`.
          point: the last update.
          test: as in `write_row`; its first metric scores the checkpoint.

        Raises:
          NonFiniteLoss: if the loss or a parameter is not finite: a diverged state never replaces a
            good one.
          OSError: if this or an earlier checkpoint could not be written.
        """
        self._check_finite(float(state.sums["loss"]), point)
        # The loss of an update is computed before it; only the parameters show what it did.
        if not self._are_finite(state.params):
            raise self._record.divergence(None, point)
        jax.block_until_ready(state.params)
        with self._clock.timer("checkpoint"):
            self._clock.total()  # brings `seconds` up to here
            notes = {
                "history": self.position.history,
                "measured": self.measured,
                "noise": self._noise.notes(),
                "compiled": self._compiled,
                "num_replaced": self._num_replaced(engine),
                "seconds": self._clock.seconds,
                "log": self._record.mark(),
            }
            score = test.get(f"test_{self._experiment.task.metrics[0].name}")
            self._checkpoints.save(
                self.position.examples_seen, state, notes, score, self.position.is_kept
            )

    def stop(self, outcome: Outcome) -> Outcome:
        """Returns the outcome when every checkpoint is on disk.

        Raises:
          OSError: if one could not be written.
        """
        self._checkpoints.wait()
        return outcome

    def finish(self, engine: Engine) -> Outcome:
        """Writes the summary; returns when everything is on disk.

        Raises:
          OSError: if a file or a checkpoint could not be written.
        """
        self._checkpoints.wait()
        num_replaced = self._num_replaced(engine)
        self._record.finish(self.position.history, self._compiled, self._clock, num_replaced)
        return Outcome.FINISHED

    def _num_replaced(self, engine: Engine) -> int:
        """Bad records that all processes have replaced since the run began."""
        mine = getattr(engine.feed, "num_replaced", None)  # not every feed can replace any
        return self._replaced_before + (0 if mine is None else total(mine))

    def _reason(self) -> str:
        """The measurements behind the decision of a plan that decides late."""
        whole = {name: value for name, value in self.measured.items() if "/" not in name}
        return ", ".join(f"{name} {value:.4g}" for name, value in whole.items())

    def _check_finite(self, loss: float, point: Point) -> None:
        """Raises NonFiniteLoss, on every process alike, if the loss up to `point` is not finite."""
        if not math.isfinite(loss):
            raise self._record.divergence(loss, point)


def _are_finite(params: Any) -> jax.Array:
    """Whether every number of a pytree is finite. It runs on the devices."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def _sums(state: TrainState) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(state.sums).items()}
