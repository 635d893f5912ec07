"""The programs of an experiment on the devices: updates, evaluation, and measured noise."""

import logging
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from batchgrow import kernels, noise, step
from batchgrow import layout as layouts
from batchgrow.compile import CompileAhead
from batchgrow.data.datasets import shapes_of
from batchgrow.data.feed import EvaluationBatches, make_feed
from batchgrow.devices import bytes_of, memory_in_use
from batchgrow.errors import first_line
from batchgrow.experiment import Experiment
from batchgrow.layout import AXIS_NAME
from batchgrow.plan import Segment
from batchgrow.step import TrainState
from batchgrow.update import RUN_AHEAD, UpdateCompiler, UpdateProgram

log = logging.getLogger(__name__)

UNCACHED = "Error writing persistent compilation cache entry for .*: MemoryError: std::bad_alloc"


class Engine:
    """One experiment on a set of devices. Nothing is compiled until it is asked for.

    Args:
      experiment: what is trained.
      mesh: the devices. For devices that are not here (`targets`) only `compiler` works.
      memory_limit: the bytes that a program may use on each device; None: what the devices report.
      compile_lowered: compiles a lowered update; None: for the devices that are here.

    Attributes:
      feed: where training batches come from.
      state: the shapes and dtypes of the training state.
      compiler: tells the layouts of a batch size and compiles its update, an `UpdateCompiler`.
      updates: the compiled update of each batch size, an `UpdateProgram`.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        memory_limit: int | None = None,
        compile_lowered: Callable[[Any], Any] | None = None,
    ):
        self._experiment, self._mesh = experiment, mesh
        self._execution = experiment.execution
        self._traces = experiment.cadence.trace_per_decade is not None
        self._start: Any = None
        e, run = experiment, experiment.execution
        self.feed = make_feed(e.train_data, e.seed, run.input, run.num_workers)
        self._test_batches = self._evaluation_batches(run.eval_batch_size)
        same = NamedSharding(mesh, PartitionSpec())
        self.state: TrainState = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same),
            jax.eval_shape(self._create_state),
        )
        self.compiler = UpdateCompiler(
            e,
            mesh,
            self.feed,
            self.state,
            memory_limit,
            compile_lowered,
            self._test_batches.held_bytes(),
        )
        self._arrays: Any = None
        self._read_until = 0
        self._dispatched: int | None = None  # the batch size of the last dispatch
        self.updates: CompileAhead[int] = CompileAhead(self._compile_update)
        others = {"evaluation": self._compile_evaluation, "noise": self._compile_noise}
        self._others: CompileAhead[str] = CompileAhead(
            lambda name: others[name](), pool=self.updates.pool
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._others.close()
        self.updates.close()
        self.feed.close()

    def initial_state(self) -> TrainState:
        """Returns the state before the first update, on the devices."""
        return layouts.replicate(self._create_state(), self._mesh)

    def use_kernels(self, name: str) -> None:
        """Compiles every program from now on with these kernels (see `kernels.OPTIONS`)."""
        self.compiler.options = kernels.OPTIONS[name]
        if name != kernels.DEFAULT:  # JAX warns of each executable that its cache cannot keep.
            warnings.filterwarnings("ignore", UNCACHED)

    def fastest_kernels(self, batch_size: int) -> str:
        """Measures updates of a batch size with every kind of kernels.

        Nothing that is trained is touched.

        Returns the name of the fastest kernels; the default unless others are clearly faster.
        """
        state = self.initial_state()

        def call(program: UpdateProgram) -> None:
            nonlocal state
            state = program.rehearse(state, self.feed.example)

        calls = {}
        for name in kernels.available(self._mesh):
            self.use_kernels(name)
            try:
                program = self._compile_update(batch_size)
                call(program)
            except jax.errors.JaxRuntimeError as error:
                if name == kernels.DEFAULT:
                    raise
                log.info("no %s kernels: %s", name, first_line(error))
                state = self.initial_state()
            else:
                calls[name] = partial(call, program)
        self.use_kernels(kernels.DEFAULT)
        return kernels.fastest(calls)

    def evaluation(self) -> Future:
        """Returns a future of the executable that evaluates one batch.

        Its result raises MemoryError if no batch size fits the memory of the devices.
        """
        return self._others.start("evaluation")

    def noise(self) -> Future:
        """Returns a future of the executable that measures the gradient noise."""
        return self._others.start("noise")

    @property
    def evaluation_size(self) -> int:
        """Examples of an evaluation batch, as far as it is known what fits."""
        return self._test_batches.batch_size

    def evaluate(self, executable: Any, state: TrainState) -> dict[str, float]:
        """Returns the metrics of the task over all test examples, each counted once.

        Args:
          executable: the result of `evaluation()`.
          state: the state to evaluate.
        """
        totals: dict[str, float] = {}
        pending: deque[Any] = deque()
        for batch in self._test_batches:
            pending.append(executable(state.evaluated, batch))
            if len(pending) > RUN_AHEAD:
                _add_to(totals, pending.popleft())
        for sums in pending:
            _add_to(totals, sums)
        found = self._experiment.task.summarize(totals)
        return {name: float(value) for name, value in found.items()}

    def measure_noise(self, executable: Any, state: TrainState, position: int) -> dict[str, float]:
        """Returns the squared norms of the gradients of pieces (see `noise.measure`).

        Args:
          executable: the result of `noise()`.
          state: the state at which to measure.
          position: where in the stream the first piece starts.
        """
        probe = self._experiment.noise
        assert probe is not None
        positions = position + np.arange(probe.num_pieces * probe.piece_size)
        positions = positions.reshape(probe.num_pieces, -1)
        filler = -probe.num_pieces % self._mesh.size
        positions = np.concatenate([positions, np.repeat(positions[-1:], filler, 0)])
        weights = (np.arange(len(positions)) < probe.num_pieces).astype(np.float32)
        local = [layouts.local_examples(x, self._mesh, axis=0) for x in (positions, weights)]
        pieces = layouts.shard((self.feed.peek(local[0]), local[1]), self._mesh)
        norms = executable(state, *pieces, self._on_devices())
        return {name: float(value) for name, value in norms.items()}

    def trace(self, state: TrainState) -> dict[str, float]:
        """Returns the columns of a trace, by column of a row; none if nothing is traced.

        They are `distance`, the Euclidean distance of the parameters from their start;
        `path_length`, the sum of the norms of all steps so far; `step_norm`, that of the last step;
        and `momentum_norm`, the norm of the sum of gradients A, for optimizers that have one.
        """
        if not self._traces:
            return {}
        if self._start is None:
            self._start = layouts.replicate(self._create_state().params, self._mesh)
            self._measure = jax.jit(step.trace)
        return {k: float(v) for k, v in self._measure(state, self._start).items()}

    def prepare(self, batch_size: int, upcoming: Sequence[int]) -> None:
        """Compiles what is needed next, in the background, and drops what is no longer needed.

        Tracing holds Python's global lock, so call this when the devices have work. The size after
        the current one is compiled from the second call on: the first dispatch of a size touches
        its memory for the first time, and would take longer beside a compilation.

        Args:
          batch_size: the current batch size.
          upcoming: the batch sizes that may follow, the nearest first.
        """
        for size in self.updates.keys() - {batch_size, *upcoming}:
            self._release(size)
        if self._execution.compile_ahead:
            self.evaluation()
            if self._experiment.noise is not None:
                self.noise()
            growths = [size for size in upcoming if size != batch_size]
            # A segment of one dispatch is over by now, and `upcoming` has no more of its size.
            is_first = batch_size != self._dispatched and batch_size in upcoming
            if growths and not is_first and not self._execution.stop_at_growth:
                self.updates.start(growths[0])
        self._dispatched = batch_size

    def read_ahead(self, segments: Sequence[Segment], examples_seen: int) -> None:
        """Lets the feed read the next examples ahead, if it can.

        It reads as far as segments are decided and compiled.

        Args:
          segments: the segments that are decided.
          examples_seen: where the next dispatch starts.
        """
        read_ahead = getattr(self.feed, "read_ahead", None)
        if read_ahead is None:
            return
        self._read_until = max(self._read_until, examples_seen)
        for segment in segments:
            program = self.updates.finished(segment.batch_size)
            while self._read_until < segment.end_examples:
                if program is None:
                    return
                if not read_ahead(program.positions([self._read_until])):
                    return
                self._read_until += segment.batch_size

    def _create_state(self) -> TrainState:
        e = self._experiment
        example = jax.tree.map(lambda x: np.zeros((1, *x.shape), x.dtype), e.train_data.example)
        averages = e.average_epochs is not None
        optimizer = e.optimizer_at(e.plan.recipe.batch_size)
        return step.create_state(
            e.task, optimizer, example, e.seed, averages=averages, traces=self._traces
        )

    def _compile_update(self, batch_size: int) -> UpdateProgram:
        return UpdateProgram(
            **vars(self.compiler.fit(batch_size)),
            mesh=self._mesh,
            arrays=self._on_devices(),
            changing_momentum=self._experiment.plan.momentum_curve is not None,
        )

    def _on_devices(self) -> Any:
        """The part of the training set that the devices hold, or ()."""
        if self._arrays is None:
            self._arrays = layouts.replicate(self.feed.arrays, self._mesh)
        return self._arrays

    def _compile_noise(self) -> Any:
        e, probe = self._experiment, self._experiment.noise
        assert probe is not None
        measure = partial(
            noise.measure,
            task=e.task,
            examples=self.feed.examples,
            seed=e.seed,
            by_layer=probe.by_layer,
            axis_name=AXIS_NAME,
        )
        num_pieces = -(-probe.num_pieces // self._mesh.size) * self._mesh.size
        pieces = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num_pieces, probe.piece_size, *x.shape), x.dtype),
            self.feed.example,
        )
        weights = jax.ShapeDtypeStruct((num_pieces,), np.float32)
        lowered = layouts.map_pieces(measure, self._mesh).lower(
            self.state, pieces, weights, shapes_of(self.feed.arrays)
        )
        return self.compiler.compile_lowered(lowered)

    def _compile_evaluation(self) -> Any:
        """Compiles the evaluation of a batch. Halves the batch until it fits the memory."""
        evaluate = partial(step.evaluate, task=self._experiment.task, axis_name=AXIS_NAME)
        mapped = layouts.map_evaluation(evaluate, self._mesh)
        used = self.state.evaluated
        beside = bytes_of((self.state, self.feed.arrays)) - bytes_of(used)
        while True:
            batches = self._test_batches
            lower = partial(mapped.lower, used, batches.shapes)
            what = f"evaluation of {batches.batch_size} examples"
            executable, need = self.compiler.compile(lower, what, beside=beside)
            if executable is not None:
                return executable
            if batches.batch_size == self._mesh.size:
                raise MemoryError(
                    f"{what}, the least for run.eval_batch_size on {self._mesh.size} devices, "
                    f"{self.compiler.too_little_memory(need)}; use a smaller model or example"
                )
            self._test_batches = self._evaluation_batches(batches.batch_size // 2)
            self.compiler.held_bytes = self._test_batches.held_bytes()

    def _evaluation_batches(self, batch_size: int) -> EvaluationBatches:
        data, run = self._experiment.test_data, self._execution
        stays = run.input == "resident"
        return EvaluationBatches(data, batch_size, run.num_workers, self._mesh, stays)

    def _release(self, batch_size: int) -> None:
        device = self._mesh.local_devices[0]
        before = memory_in_use(device)
        self.updates.release(batch_size)
        after = memory_in_use(device)
        if before is not None and after is not None:
            text = "released batch size %d: device memory %.1f -> %.1f MiB"
            log.info(text, batch_size, before / 2**20, after / 2**20)


def _add_to(totals: dict[str, float], sums: Any) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)
