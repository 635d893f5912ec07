"""An experiment: everything that a run needs, as plain values (see `config.make_experiment`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import optax

from batchgrow.data.datasets import Dataset
from batchgrow.optimizer import ByBatch
from batchgrow.plan import Plan, Segment
from batchgrow.tasks import Task

MAX_EXAMPLES = 2**32  # The most examples of a run: a stream position is a uint32 on the device.
INPUTS = ("resident", "streamed", "workers")


class Outcome(StrEnum):
    """How a call of `train` ended. After PREEMPTED and GROWTH the same call continues the run."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    GROWTH = "growth"


class NonFiniteLoss(RuntimeError):
    """The training loss or a parameter became infinite or NaN."""


@dataclass(frozen=True)
class Cadence:
    """How often things happen, in examples seen.

    Attributes:
      log: examples between two rows of the log.
      evaluate: examples between two evaluations.
      checkpoint: examples between two checkpoints.
      trace_per_decade: how many rows follow each other while the updates since the start of a
        segment grow tenfold. These rows are evenly spaced in the logarithm of the updates, and all
        rows then have the columns of a trace (see `Engine.trace`). None for no trace.
    """

    log: int
    evaluate: int
    checkpoint: int
    trace_per_decade: int | None = None

    def next_trace(self, examples_seen: int, segment: Segment) -> int:
        """Returns the first position beyond this one of a row of the trace.

        It is after 1, 10^(1/k), 10^(2/k), ... updates of the segment, rounded, where k is
        `trace_per_decade`.

        Args:
          examples_seen: a position in the segment.
          segment: the current segment.
        """
        if self.trace_per_decade is None:
            return MAX_EXAMPLES
        done = (examples_seen - segment.start_examples) // segment.batch_size
        index = int(self.trace_per_decade * math.log10(max(done, 1)))
        while (updates := round(10 ** (index / self.trace_per_decade))) <= done:
            index += 1
        return segment.start_examples + updates * segment.batch_size


@dataclass(frozen=True)
class NoiseProbe:
    """When and how the gradient noise is measured (see `plan.noise`).

    A probe takes the gradients of the next examples of the stream and changes nothing.

    Attributes:
      piece_size: b, the number of examples of a piece, a multiple of the ghost batch size.
      num_pieces: K, the number of pieces, at least two.
      every: the examples between two probes.
      horizon: the time constant of the averages, in examples.
      by_layer: whether to measure the noise of each layer too.
    """

    piece_size: int
    num_pieces: int
    every: int
    horizon: float
    by_layer: bool = False

    def __post_init__(self) -> None:
        if self.piece_size < 1:
            raise ValueError(f"noise.piece_size {self.piece_size} must be 1 or more")
        if self.num_pieces < 2:
            raise ValueError(f"noise.num_pieces {self.num_pieces} must be 2 or more")
        if self.every < 1:
            raise ValueError(f"NoiseProbe.every {self.every} must be 1 or more")
        if not self.horizon > 0:
            raise ValueError("noise.horizon_epochs must be above 0")


@dataclass(frozen=True)
class Execution:
    """How an experiment is executed. Only one value changes the trajectory: "workers" as the input.

    Attributes:
      num_devices: the number of devices; None for all.
      input: "resident": the devices hold the training set; "streamed": the host sends each batch;
        "workers": worker processes decode the images, and crop them in a way of their own.
      num_workers: worker processes; 0 for a thread.
      max_microbatch_size: the most examples of one pass on one device; None: chosen by memory.
      updates_per_dispatch: the most updates of one call; None: chosen by the batch size.
      eval_batch_size: examples of an evaluation batch on all devices, rounded up to whole devices.
        It is halved until it fits the memory.
      compile_ahead: whether the next batch size compiles while the current one trains.
      compilation_cache_dir: "" for JAX's own setting, else ~/.cache/batchgrow/xla.
      cpu_kernels: a key of `kernels.OPTIONS`; "auto": long runs measure which are fastest. They
        change the last bits of a trajectory.
      keep_checkpoints: how many of the last checkpoints to keep; the best is kept too.
      keep_traced: whether the checkpoints of the rows of a trace and of the ends of segments are
        written, and kept too.
      stop_at_growth: whether to stop before each growth, to continue on more devices.
      tensorboard: whether to write an event file.
      progress: whether to show progress.
    """

    num_devices: int | None = None
    input: str = "resident"
    num_workers: int = 0
    max_microbatch_size: int | None = None
    updates_per_dispatch: int | None = None
    eval_batch_size: int = 1000
    compile_ahead: bool = True
    compilation_cache_dir: str = ""
    cpu_kernels: str = "auto"
    keep_checkpoints: int = 2
    keep_traced: bool = False
    stop_at_growth: bool = False
    tensorboard: bool = True
    progress: bool = True


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, by which plan, and how it is executed.

    Attributes:
      name: shown in messages and in the report.
      task: the model, its loss and its metrics.
      train_data: the training set.
      test_data: the test set.
      plan: the segments of the run, and with them batch sizes and learning rates.
      optimizer: turns gradients into the direction that the learning rate scales; or a function
        of the batch size that returns such an optimizer. All of them must have the same state.
      cadence: when to log, evaluate and save.
      seed: determines parameters, stream order, augmentation and dropout.
      ghost_batch_size: consecutive examples that share batch statistics; 1 without ghost norm.
      noise: how the gradient noise is measured; None: it is not measured.
      average_epochs: the time constant of an exponential average of the parameters, which is
        evaluated instead of them; None for no average.
      settings: the nested plain values that `config.json` records. Those under "run" may change
        when a run is resumed.
      defaults: values of settings by dotted name. A run folder without such a setting was made
        before it existed, and may be resumed if the setting has this value.
      execution: how it is executed.
    """

    name: str
    task: Task
    train_data: Dataset
    test_data: Dataset
    plan: Plan
    optimizer: ByBatch
    cadence: Cadence
    seed: int = 0
    ghost_batch_size: int = 1
    noise: NoiseProbe | None = None
    average_epochs: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    execution: Execution = Execution()

    def optimizer_at(self, batch_size: int) -> optax.GradientTransformation:
        """Returns the optimizer of the updates with this batch size."""
        if isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        return self.optimizer(batch_size)

    def __post_init__(self) -> None:
        if self.execution.input not in INPUTS:
            raise ValueError(
                f"unknown run.input {self.execution.input!r}; choose {', '.join(INPUTS)}"
            )
        if self.noise is not None and self.noise.piece_size % self.ghost_batch_size:
            raise ValueError(
                f"noise.piece_size {self.noise.piece_size} must be a multiple of ghost_batch_size "
                f"{self.ghost_batch_size}: a piece has whole ghost batches"
            )
        if self.plan.end_examples >= MAX_EXAMPLES:
            raise ValueError(
                f"the plan has {self.plan.end_examples:,} examples, but stream positions end at "
                f"{MAX_EXAMPLES - 1:,}; train for fewer epochs"
            )
