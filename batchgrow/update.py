"""The compiled update of a batch size, in the first layout that fits the memory of the devices."""

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from batchgrow import layout as layouts
from batchgrow import step
from batchgrow.data.datasets import shapes_of
from batchgrow.data.feed import Feed
from batchgrow.devices import memory_limit, memory_needed
from batchgrow.errors import first_line
from batchgrow.experiment import Experiment
from batchgrow.layout import AXIS_NAME, Layout
from batchgrow.plan import Point
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


@dataclass(frozen=True, kw_only=True)
class UpdateProgram(FittedUpdate):
    """A fitted update on devices, which makes updates.

    Attributes:
      mesh: the devices.
      arrays: the part of the training set that the devices hold, or ().
      changing_momentum: whether each update gets its own momentum.
    """

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
        momenta = np.zeros(self.max_updates, np.float32)
        momenta[: len(points)] = [point.momentum for point in points]
        state, token = self._call(state, batches, rates, len(points), momenta)
        self._in_flight.append(token)
        if len(self._in_flight) > RUN_AHEAD:
            self._in_flight.popleft().block_until_ready()
        return state

    def rehearse(self, state: TrainState, example: Any) -> TrainState:
        """Makes one update at learning rate 0 on examples of zeros, and waits for it.

        Args:
          state: the state before the update; its buffers are donated.
          example: the shapes of what the feed sends for one example.
        """
        local = self.positions([0] * self.max_updates).shape
        batches = jax.tree.map(lambda x: np.zeros((*local, *x.shape), x.dtype), example)
        zeros = np.zeros(self.max_updates, np.float32)
        return jax.block_until_ready(self._call(state, batches, zeros, 1, zeros)[0])

    def _call(
        self, state: TrainState, batches: Any, rates: np.ndarray, count: int, momenta: np.ndarray
    ) -> tuple[TrainState, jax.Array]:
        scalars = (rates, np.int32(count), momenta if self.changing_momentum else None)
        *arguments, on_devices = layouts.host_arguments(batches, scalars, self.mesh)
        return self.executable(state, *arguments, self.arrays, on_devices)


class UpdateCompiler:
    """Compiles the update of an experiment for any batch size, in the first layout that fits.

    Args:
      experiment: what is trained.
      mesh: the devices, which need not be here (`targets`).
      feed: where training batches come from.
      state: the shapes and dtypes of the training state.
      memory_limit: the bytes that a program may use on each device; None: what the devices report.
      compile_lowered: compiles a lowered program; None: for the devices that are here.
      held_bytes: the bytes of each device that the test set uses throughout the run.

    Attributes:
      held_bytes: as above; it may be set anew.
      options: XLA's options for programs compiled from now on (see `kernels`).
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        feed: Feed,
        state: TrainState,
        memory_limit: int | None = None,
        compile_lowered: Callable[[Any], Any] | None = None,
        held_bytes: int = 0,
    ):
        self._experiment, self._mesh, self._feed, self._state = experiment, mesh, feed, state
        self._execution = experiment.execution
        self.options: Mapping[str, Any] = {}
        self.compile_lowered = compile_lowered or self._compile_here
        self._memory_limit = memory_limit or _least_memory_limit(mesh)
        self.held_bytes = held_bytes

    def layouts(self, batch_size: int) -> tuple[Layout, ...]:
        """Returns the layouts to try for a batch size, from the fewest micro-batches on.

        Raises:
          ValueError: if there is none (see `possible_layouts`).
        """
        most = self._execution.max_microbatch_size or self._default_microbatch_size()
        ghost = self._experiment.ghost_batch_size
        return layouts.possible_layouts(batch_size, self._mesh.size, ghost, most)

    def fit(self, batch_size: int) -> FittedUpdate:
        """Compiles the first layout that fits the memory of the devices, by XLA's own analysis.

        A layout that cannot fit, by what a larger one needs, is not compiled.

        Raises:
          MemoryError: if no layout fits.
        """
        candidates, limit = self.layouts(batch_size), self._memory_limit
        is_fixed = self._execution.max_microbatch_size is not None
        max_updates = self.max_updates(batch_size)
        too_large: list[tuple[Layout, int | None]] = []
        for layout in candidates[:1] if is_fixed else candidates:
            if layout is not candidates[-1] and _is_hopeless(layout, too_large, limit):
                continue
            lower = self._lowering(layout, max_updates)
            executable, need = self.compile(lower, str(layout), is_fixed)
            if executable is not None:
                return FittedUpdate(executable, layout, max_updates, tuple(too_large))
            too_large.append((layout, need))
        raise self._too_little_memory(*too_large[-1])

    def compile(
        self, lower: Callable[[], Any], what: str, is_fixed: bool = False, beside: int = 0
    ) -> tuple[Any, int | None]:
        """Compiles a program if it fits the memory of the devices.

        Args:
          lower: traces and lowers the program.
          what: its name in the log.
          is_fixed: whether it is wanted even if XLA's analysis says that it does not fit.
          beside: the bytes of each device that hold something else meanwhile.

        Returns:
          The executable, None if it does not fit; and the bytes that it needs, None if unknown.
        """
        try:
            executable = self.compile_lowered(lower())
        except jax.errors.JaxRuntimeError as error:  # the TPU compiler refuses by itself
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            log.info("%s: %s", what, first_line(error))
            return None, _refused_bytes(str(error))
        need, limit = memory_needed(executable), self._memory_limit
        if is_fixed or limit is None or need is None:
            return executable, need
        if need + beside + self.held_bytes <= MEMORY_SHARE * limit:
            return executable, need
        log.info("%s needs %.1f GiB of %.1f GiB", what, need / 2**30, limit / 2**30)
        return None, need

    def max_updates(self, batch_size: int) -> int:
        """How many updates one call makes: enough to hide its cost, few enough to stop soon."""
        if self._execution.updates_per_dispatch is not None:
            return self._execution.updates_per_dispatch
        # Examples that the host sends arrive one update at a time.
        is_resident = bool(jax.tree.leaves(self._feed.arrays))
        return max(1, min(MAX_UPDATES, DISPATCH_EXAMPLES // batch_size)) if is_resident else 1

    def lower(self, batch_size: int) -> Any:
        """Returns the lowered update of a batch size in the first of its layouts."""
        return self._lowering(self.layouts(batch_size)[0], self.max_updates(batch_size))()

    def _compile_here(self, lowered: Any) -> Any:
        if not self.options:
            return lowered.compile()
        return lowered.compile(compiler_options=dict(self.options))

    def _lowering(self, layout: Layout, max_updates: int) -> Callable[[], Any]:
        """Returns the function that traces and lowers the update."""
        e, decay = self._experiment, None
        if e.average_epochs is not None:
            decay = math.exp(-layout.batch_size / (e.average_epochs * e.train_data.num_examples))
        update = partial(
            step.update,
            task=e.task,
            optimizer=e.optimizer_at(layout.batch_size),
            examples=self._feed.examples,
            seed=e.seed,
            average_decay=decay,
            axis_name=AXIS_NAME,
        )
        lead = (max_updates, layout.num_microbatches, layout.batch_size // layout.num_microbatches)
        batches = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), self._feed.example
        )
        rates = jax.ShapeDtypeStruct((max_updates,), np.float32)
        return partial(
            layouts.map_updates(partial(step.updates, update=update), self._mesh).lower,
            self._state,
            batches,
            rates,
            jax.ShapeDtypeStruct((), np.int32),
            shapes_of(self._feed.arrays),
            rates if e.plan.momentum_curve is not None else None,  # momenta
        )

    def _default_microbatch_size(self) -> float:
        """The default of `max_microbatch_size`; inf where memory decides."""
        if self._memory_limit is not None:
            return math.inf
        platform = self._mesh.devices.flat[0].platform
        most = CPU_PASS if platform == "cpu" else UNKNOWN_MEMORY_PASS
        return max(most, self._experiment.ghost_batch_size)

    def too_little_memory(self, need: int | None) -> str:
        """Says what a program needs and what there is: "needs 9.0 GiB, and TPU v2 has 7.5 GiB".

        Args:
          need: bytes, or None if the compiler refused.
        """
        kind, limit = self._mesh.devices.flat[0].device_kind, self._memory_limit
        needs = f"needs {need / 2**30:.1f} GiB" if need else "needs too much memory"
        if self.held_bytes > 2**30:
            held = f"{self.held_bytes / 2**30:.1f} GiB of the test set"
            needs += f" beside {held} (none with run.input=streamed)"
        return f"{needs}, and {kind} has {f'{limit / 2**30:.1f} GiB' if limit else 'less'}"

    def _too_little_memory(self, layout: Layout, need: int | None) -> MemoryError:
        return MemoryError(
            f"batch size {layout.batch_size}: a micro-batch of {layout.microbatch_size} examples "
            f"{self.too_little_memory(need)}; use a smaller run.max_microbatch_size, ghost batch, "
            "model or example"
        )


def _is_hopeless(
    layout: Layout, too_large: Sequence[tuple[Layout, int | None]], limit: int | None
) -> bool:
    """Whether a layout needs more than the limit, by what a layout that was too large needs.

    A part of the memory does not depend on the examples of a pass. With half of the examples a
    layout therefore needs more than half of the memory.
    """
    return limit is not None and any(
        need is not None and need * layout.microbatch_size > limit * tried.microbatch_size
        for tried, need in too_large
    )


def _refused_bytes(message: str) -> int | None:
    """The bytes that a program needs by the message with which the TPU compiler refuses it."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) if found else None


def _least_memory_limit(mesh: Mesh) -> int | None:
    """Bytes of the device with the least memory, so that all processes choose the same layouts."""
    limit = memory_limit(mesh.local_devices[0])
    if limit is not None and jax.process_count() > 1:
        # In MiB: JAX gathers 32 bits, and a device has more bytes than they can count.
        limit = int(multihost_utils.process_allgather(np.int32(limit >> 20)).min()) << 20
    return limit
