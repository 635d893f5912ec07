"""The compiled programs of an experiment: one update per batch size, and the evaluation."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from batchgrow import parallel, steps
from batchgrow.data.feed import Feed, HostBatch
from batchgrow.compile import CompileAhead, CompileTimes
from batchgrow.devices import memory_limit, memory_needed
from batchgrow.layout import Layout
from batchgrow.state import TrainState

log = logging.getLogger(__name__)

EVALUATION = "evaluation"
MAX_UPDATES = 16
DISPATCH_EXAMPLES = 2048
MEMORY_SHARE = 0.9  # of the device's limit; the rest is for fragmentation and other programs
# Examples in one pass (or one ghost batch, if that is larger) where memory does not decide:
CPU_PASS = 32  # what its caches hold; whole batches of 800 take up to twice as long
UNKNOWN_MEMORY_PASS = 4096  # on any other backend that does not tell its memory


@dataclass(frozen=True)
class TrainProgram:
    """An executable for one batch size.

    Attributes:
      layout: how it wants the batch of an update laid out.
      updates_per_dispatch: how many updates one call has room for.
    """

    executable: Any
    layout: Layout
    updates_per_dispatch: int


@dataclass(frozen=True)
class _Lowered:
    """A training step traced for its largest layout; `compile` may turn to smaller ones."""

    compile: Callable[[], TrainProgram]


class Programs:
    """Lowers and compiles what an experiment runs, ahead of time if asked to.

    Args:
      model, optimizer: what is trained and how.
      prepare_train, prepare_test: from a host batch to images and labels (`make_prepare`).
      label_smoothing: of the training loss.
      state: any state of the right shapes.
      feed: where training batches come from.
      test_batch: one batch of the evaluation, `(local_devices, per_device, ...)`.
      mesh: the devices.
      ghost_batch_size: examples that share statistics.
      max_per_device_batch_size: examples in one pass on one device; None for what memory holds.
      updates_per_dispatch: how many updates one call may make; 0 for `default_updates`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: optax.GradientTransformation,
        prepare_train: steps.Prepare,
        prepare_test: steps.Prepare,
        label_smoothing: float,
        state: TrainState,
        feed: Feed,
        test_batch: HostBatch,
        mesh: Mesh,
        ghost_batch_size: int,
        max_per_device_batch_size: int | None,
        updates_per_dispatch: int,
    ):
        self.mesh = mesh
        self._updates_per_dispatch = updates_per_dispatch
        self._ghost_batch_size = ghost_batch_size
        self._max_per_device_batch_size = max_per_device_batch_size
        self._memory_limit = _least_memory_limit(mesh)
        self._feed = feed
        self._dataset = _shapes(feed.dataset)
        self._state = _shapes(state)
        self._test_batch = {
            name: jax.ShapeDtypeStruct((mesh.size, *x.shape[1:]), x.dtype)
            for name, x in test_batch.items()
        }
        axis_name = parallel.AXIS_NAME
        self._step = partial(
            steps.train_step,
            model=model,
            optimizer=optimizer,
            prepare=prepare_train,
            label_smoothing=label_smoothing,
            axis_name=axis_name,
        )
        self._evaluate = partial(
            steps.eval_step, model=model, prepare=prepare_test, axis_name=axis_name
        )
        self._ahead: CompileAhead[int | str] = CompileAhead(self._lower)

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.close()

    @property
    def times(self) -> dict[int | str, CompileTimes]:
        """What each program cost to compile, by batch size (and `EVALUATION`)."""
        return self._ahead.times

    def start(self, global_batch_size: int | str) -> None:
        """Begins to compile for this batch size in the background."""
        self._ahead.start(global_batch_size)

    def ready(self, global_batch_size: int | str) -> bool:
        """Whether its program is compiled."""
        return self._ahead.ready(global_batch_size)

    def train(self, global_batch_size: int) -> TrainProgram:
        """The program of this batch size; waits until it is compiled."""
        return self._ahead.get(global_batch_size)

    def release(self, global_batch_size: int) -> None:
        """Drops a program that is not needed any more."""
        self._ahead.release(global_batch_size)

    def evaluation(self) -> Callable[..., steps.Sums]:
        """The evaluation of one test batch."""
        return self._ahead.get(EVALUATION)

    def updates_per_dispatch(self, global_batch_size: int) -> int:
        """How many updates of this size one call may make."""
        if self._updates_per_dispatch:
            return self._updates_per_dispatch
        # A data set that is streamed comes one update at a time.
        return default_updates(global_batch_size) if self._feed.dataset else 1

    def layouts(self, global_batch_size: int) -> Sequence[Layout]:
        """The layouts to try, from the fewest micro-batches on.

        Raises:
          ValueError: as `choose_layout`.
        """
        limit = self._max_per_device_batch_size or math.inf
        device = self.mesh.local_devices[0]
        if limit == math.inf and self._memory_limit is None:
            is_cpu = device.platform == "cpu"
            limit = max(CPU_PASS if is_cpu else UNKNOWN_MEMORY_PASS, self._ghost_batch_size)
            if global_batch_size // self.mesh.size > limit:
                log.log(
                    logging.INFO if is_cpu else logging.WARNING,
                    "%s does not tell its memory: %d examples in one pass "
                    "(run.max_per_device_batch_size)",
                    device.device_kind,
                    limit,
                )
        first = parallel.choose_layout(
            global_batch_size, self.mesh.size, self._ghost_batch_size, limit
        )
        every = parallel.layouts(global_batch_size, self.mesh.size, self._ghost_batch_size)
        return [x for x in every if x.num_microbatches >= first.num_microbatches]

    def _lower(self, key: int | str) -> Any:
        if key == EVALUATION:
            evaluate = parallel.map_eval(self._evaluate, self.mesh)
            state = self._state
            return evaluate.lower(state.params, state.batch_stats, self._test_batch, ())
        assert isinstance(key, int)
        candidates = self.layouts(key)
        lowered = self._lower_train(candidates[0])
        return _Lowered(partial(self._compile, lowered, candidates))

    def _compile(self, lowered: Any, candidates: Sequence[Layout]) -> TrainProgram:
        """The first layout whose executable fits the device's memory, by XLA's own analysis."""
        limit, need = self._memory_limit, None
        for layout in candidates:
            lowered = lowered or self._lower_train(layout)
            try:
                executable, lowered = lowered.compile(), None
            except jax.errors.JaxRuntimeError as error:  # the TPU compiler refuses by itself
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if self._max_per_device_batch_size:
                    raise self._too_little_memory(layout, None) from error
                log.info("%s: %s", layout, str(error).splitlines()[0])
                lowered = None
                continue
            need = memory_needed(executable)
            if self._max_per_device_batch_size or limit is None or need is None:
                return self._program(executable, layout)
            if need <= MEMORY_SHARE * limit:
                return self._program(executable, layout)
            log.info("%s needs %.1f GiB of %.1f GiB", layout, need / 2**30, limit / 2**30)
        raise self._too_little_memory(candidates[-1], need)

    def _too_little_memory(self, layout: Layout, need: int | None) -> MemoryError:
        """`need`: bytes, if an executable came out; the compiler itself may have refused."""
        device, limit = self.mesh.local_devices[0], self._memory_limit
        needs = f"needs {need / 2**30:.1f} GiB" if need else "needs too much memory"
        has = f"{limit / 2**30:.1f} GiB" if limit else "less"
        return MemoryError(
            f"global batch size {layout.global_batch_size}: a micro-batch of "
            f"{layout.microbatch_size} examples {needs}, and {device.device_kind} has {has}; use a "
            "smaller run.max_per_device_batch_size, ghost batch, model or image"
        )

    def _program(self, executable: Any, layout: Layout) -> TrainProgram:
        updates = self.updates_per_dispatch(layout.global_batch_size)
        return TrainProgram(executable, layout, updates)

    def _lower_train(self, layout: Layout) -> Any:
        updates = self.updates_per_dispatch(layout.global_batch_size)
        shape = (self.mesh.size, updates, layout.num_microbatches, layout.microbatch_size)
        batches = {
            name: jax.ShapeDtypeStruct(shape + trailing, dtype)
            for name, (trailing, dtype) in self._feed.spec.items()
        }
        rates = jax.ShapeDtypeStruct((updates,), np.float32)
        count = jax.ShapeDtypeStruct((), np.int32)
        train = parallel.map_train(partial(steps.train_steps, self._step), self.mesh)
        return train.lower(self._state, batches, rates, count, self._dataset)


def default_updates(global_batch_size: int) -> int:
    """How many updates one call makes: enough to hide its cost, few enough to stop soon."""
    return max(1, min(MAX_UPDATES, DISPATCH_EXAMPLES // global_batch_size))


def _least_memory_limit(mesh: Mesh) -> int | None:
    """What the device with the least memory has, so that all processes choose the same layouts."""
    limit = memory_limit(mesh.local_devices[0])
    if limit is not None and jax.process_count() > 1:
        limit = int(multihost_utils.process_allgather(np.int64(limit)).min())
    return limit


def split_evenly(batch: HostBatch, mesh: Mesh) -> HostBatch:
    """This process's share `(local_devices, per_device, ...)` of a global `(examples, ...)`."""
    slots = parallel.local_device_slots(mesh)
    return {k: v.reshape(mesh.size, -1, *v.shape[1:])[slots] for k, v in batch.items()}


def _shapes(tree: Any) -> Any:
    """All that lowering looks at."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
