"""The programs on the devices: the compiled update of each batch size, and the evaluation."""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from batchgrow import layout as layouts
from batchgrow import noise, step
from batchgrow.compile import CompileAhead
from batchgrow.data.datasets import shapes_of
from batchgrow.data.feed import EvaluationBatches, make_feed
from batchgrow.devices import memory_in_use, memory_limit, memory_needed
from batchgrow.experiment import Experiment
from batchgrow.layout import AXIS_NAME, Layout
from batchgrow.plan import Point, Segment
from batchgrow.step import TrainState

log = logging.getLogger(__name__)

MAX_UPDATES = 16
DISPATCH_EXAMPLES = 2048
MEMORY_SHARE = 0.9  # of the device's limit; the rest is for fragmentation and other programs
# Examples in one pass (or one ghost batch, if that is larger) where memory does not decide:
CPU_PASS = 32  # fits into caches; whole batches of 800 take up to twice as long
UNKNOWN_MEMORY_PASS = 4096  # on any other backend that does not report its memory
RUN_AHEAD = 2  # dispatches that the host may be ahead of the devices


@dataclass(frozen=True)
class FittedUpdate:
    """The compiled update of one batch size, in the first layout that fits the memory.

    Attributes:
      executable: makes several updates in one call (`step.updates`).
      layout: how the batch of an update is laid out.
      max_updates: the most updates that one call makes.
      too_large: the layouts that were tried before, with the bytes that each needs; None where the
        compiler refused without a number.
    """

    executable: Any
    layout: Layout
    max_updates: int
    too_large: tuple[tuple[Layout, int | None], ...] = ()


@dataclass(frozen=True)
class UpdateProgram:
    """The compiled update of one batch size, on devices.

    Attributes:
      executable: makes several updates in one call (`step.updates`).
      layout: how the batch of an update is laid out.
      max_updates: the most updates that one call makes.
      mesh: the devices.
      arrays: the part of the training set that the devices hold, or ().
      changing_momentum: whether each update gets its own momentum.
    """

    executable: Any
    layout: Layout
    max_updates: int
    mesh: Mesh
    arrays: Any
    changing_momentum: bool = False
    _in_flight: deque[jax.Array] = field(default_factory=deque)

    def positions(self, starts: Sequence[int]) -> np.ndarray:
        """Returns the stream positions that this process feeds to updates that start at `starts`.

        Returns int64 `(updates, micro-batches, local examples)`.
        """
        whole = np.array(starts)[:, None] + np.arange(self.layout.batch_size)
        return layouts.local_examples(self.layout.split(whole), self.mesh)

    def dispatch_positions(self, points: Sequence[Point]) -> np.ndarray:
        """Returns `positions` of one call. The last update is repeated to fill the call.

        The repeated updates are not run.
        """
        starts = [point.start_examples for point in points]
        return self.positions(starts + starts[-1:] * (self.max_updates - len(starts)))

    def __call__(self, state: TrainState, batches: Any, points: Sequence[Point]) -> TrainState:
        """Starts the updates at `points`; waits only if the host is far ahead of the devices.

        Args:
          state: the state before the updates; its buffers are donated.
          batches: host arrays for `dispatch_positions(points)`.
          points: the updates, at most `max_updates`.
        """
        rates = np.zeros(self.max_updates, np.float32)
        rates[: len(points)] = [point.learning_rate for point in points]
        momenta = None
        if self.changing_momentum:
            momenta = np.zeros(self.max_updates, np.float32)
            momenta[: len(points)] = [point.momentum for point in points]
        scalars = (rates, np.int32(len(points)), momenta)
        *arguments, momenta = layouts.host_arguments(batches, scalars, self.mesh)
        state, token = self.executable(state, *arguments, self.arrays, momenta)
        self._in_flight.append(token)
        if len(self._in_flight) > RUN_AHEAD:
            self._in_flight.popleft().block_until_ready()
        return state


class Engine:
    """One experiment on a set of devices. Nothing is compiled until it is asked for.

    Args:
      experiment: what is trained.
      mesh: the devices. For devices that are not here (`targets`) only `fit_update` works.
      memory_limit: the bytes that a program may use on each device; None: what the devices report.
      compile_lowered: compiles a lowered update.

    Attributes:
      feed: where training batches come from.
      state: the shapes and dtypes of the training state.
      updates: the compiled update of each batch size, an `UpdateProgram`.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        memory_limit: int | None = None,
        compile_lowered: Callable[[Any], Any] = lambda lowered: lowered.compile(),
    ):
        self._experiment, self._mesh = experiment, mesh
        self._compile_lowered = compile_lowered
        self._execution = experiment.execution
        self._traces = experiment.cadence.trace_per_decade is not None
        self._start: Any = None
        e, run = experiment, experiment.execution
        self.feed = make_feed(e.train_data, e.seed, run.input, run.num_workers)
        self._test_batches = EvaluationBatches(
            e.test_data, run.eval_batch_size, run.num_workers, mesh
        )
        same = NamedSharding(mesh, PartitionSpec())
        self.state: TrainState = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same),
            jax.eval_shape(self._create_state),
        )
        self._memory_limit = memory_limit or _least_memory_limit(mesh)
        self._changing_momentum = e.plan.momentum_curve is not None
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

    def layouts(self, batch_size: int) -> tuple[Layout, ...]:
        """Returns the layouts to try for a batch size, from the fewest micro-batches on.

        Raises:
          ValueError: if there is none (see `possible_layouts`).
        """
        most = self._execution.max_microbatch_size or self._default_microbatch_size()
        ghost = self._experiment.ghost_batch_size
        return layouts.possible_layouts(batch_size, self._mesh.size, ghost, most)

    def evaluation(self) -> Future:
        """Returns a future of the executable that evaluates one batch."""
        return self._others.start("evaluation")

    def noise(self) -> Future:
        """Returns a future of the executable that measures the gradient noise."""
        return self._others.start("noise")

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
        return self._experiment.task.summarize(totals)

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

    def _default_microbatch_size(self) -> float:
        """The default of `max_microbatch_size`; inf where memory decides."""
        if self._memory_limit is not None:
            return math.inf
        platform = self._mesh.devices.flat[0].platform
        most = CPU_PASS if platform == "cpu" else UNKNOWN_MEMORY_PASS
        return max(most, self._experiment.ghost_batch_size)

    def fit_update(self, batch_size: int) -> FittedUpdate:
        """Compiles the first layout that fits the memory of the devices, by XLA's own analysis.

        Raises:
          MemoryError: if no layout fits.
        """
        candidates, limit = self.layouts(batch_size), self._memory_limit
        is_fixed = self._execution.max_microbatch_size is not None
        max_updates = self._max_updates(batch_size)
        too_large: list[tuple[Layout, int | None]] = []
        for layout in candidates[:1] if is_fixed else candidates:
            try:
                lower = self._lowering(layout, max_updates)
                executable = self._compile_lowered(lower())
            except jax.errors.JaxRuntimeError as error:  # the TPU compiler refuses by itself
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                log.info("%s: %s", layout, str(error).splitlines()[0])
                too_large.append((layout, None))
                continue
            need = memory_needed(executable)
            if is_fixed or limit is None or need is None or need <= MEMORY_SHARE * limit:
                return FittedUpdate(executable, layout, max_updates, tuple(too_large))
            log.info("%s needs %.1f GiB of %.1f GiB", layout, need / 2**30, limit / 2**30)
            too_large.append((layout, need))
        raise self._too_little_memory(*too_large[-1])

    def _compile_update(self, batch_size: int) -> UpdateProgram:
        fitted = self.fit_update(batch_size)
        return UpdateProgram(
            fitted.executable,
            fitted.layout,
            fitted.max_updates,
            self._mesh,
            self._on_devices(),
            self._changing_momentum,
        )

    def _lowering(self, layout: Layout, max_updates: int) -> Callable[[], Any]:
        """Returns the function that traces and lowers the update."""
        e, decay = self._experiment, None
        if e.average_epochs is not None:
            decay = math.exp(-layout.batch_size / (e.average_epochs * e.train_data.num_examples))
        update = partial(
            step.update,
            task=e.task,
            optimizer=e.optimizer_at(layout.batch_size),
            examples=self.feed.examples,
            seed=e.seed,
            average_decay=decay,
            axis_name=AXIS_NAME,
        )
        lead = (max_updates, layout.num_microbatches, layout.batch_size // layout.num_microbatches)
        batches = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), self.feed.example
        )
        return partial(
            layouts.map_updates(partial(step.updates, update=update), self._mesh).lower,
            self.state,
            batches,
            jax.ShapeDtypeStruct((max_updates,), np.float32),
            jax.ShapeDtypeStruct((), np.int32),
            shapes_of(self.feed.arrays),
            jax.ShapeDtypeStruct((max_updates,), np.float32) if self._changing_momentum else None,
        )

    def _max_updates(self, batch_size: int) -> int:
        """How many updates one call makes: enough to hide its cost, few enough to stop soon."""
        if self._execution.updates_per_dispatch is not None:
            return self._execution.updates_per_dispatch
        # Examples that the host sends arrive one update at a time.
        is_resident = bool(jax.tree.leaves(self.feed.arrays))
        return max(1, min(MAX_UPDATES, DISPATCH_EXAMPLES // batch_size)) if is_resident else 1

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
        return lowered.compile()

    def _compile_evaluation(self) -> Any:
        evaluate = partial(step.evaluate, task=self._experiment.task, axis_name=AXIS_NAME)
        mapped = layouts.map_evaluation(evaluate, self._mesh)
        return mapped.lower(self.state.evaluated, self._test_batches.shapes).compile()

    def _release(self, batch_size: int) -> None:
        device = self._mesh.local_devices[0]
        before = memory_in_use(device)
        self.updates.release(batch_size)
        after = memory_in_use(device)
        if before is not None and after is not None:
            text = "released batch size %d: device memory %.1f -> %.1f MiB"
            log.info(text, batch_size, before / 2**20, after / 2**20)

    def _too_little_memory(self, layout: Layout, need: int | None) -> MemoryError:
        """`need` is the memory in bytes, or None if the compiler refused."""
        device, limit = self._mesh.devices.flat[0], self._memory_limit
        needs = f"needs {need / 2**30:.1f} GiB" if need else "needs too much memory"
        has = f"{limit / 2**30:.1f} GiB" if limit else "less"
        return MemoryError(
            f"batch size {layout.batch_size}: a micro-batch of {layout.microbatch_size} examples "
            f"{needs}, and {device.device_kind} has {has}; use a smaller run.max_microbatch_size, "
            "ghost batch, model or example"
        )


def _least_memory_limit(mesh: Mesh) -> int | None:
    """Bytes of the device with the least memory, so that all processes choose the same layouts."""
    limit = memory_limit(mesh.local_devices[0])
    if limit is not None and jax.process_count() > 1:
        limit = int(multihost_utils.process_allgather(np.int64(limit)).min())
    return limit


def _add_to(totals: dict[str, float], sums: Any) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)
