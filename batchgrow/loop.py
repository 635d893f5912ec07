"""The loop that all experiments share: for each phase, for each dispatch of updates.

The only file that knows the order of things.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any

import jax
import numpy as np

from batchgrow import parallel
from batchgrow.run.checkpoints import Checkpoints
from batchgrow.data.feed import Feed
from batchgrow.devices import memory_in_use
from batchgrow.run.signals import Preemption
from batchgrow.programs import EVALUATION, Programs, TrainProgram
from batchgrow.run.progress import Progress
from batchgrow.run.log import TIMERS, Clock, Row, RunLog
from batchgrow.plan.plan import Phase, Point, Schedule
from batchgrow.state import TrainState, zero_sums

log = logging.getLogger(__name__)

RUN_AHEAD = 2  # dispatches that the host may be ahead of the devices


class Outcome(StrEnum):
    """How a call of `train` ended. Every one of them can be started again."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    PHASE_END = "phase end"


class NonFiniteLoss(RuntimeError):
    """The training loss became infinite or NaN."""


@dataclass(frozen=True)
class Cadence:
    """How often things happen, in examples seen."""

    log: int
    evaluate: int
    checkpoint: int

    def next_stop(self, examples_seen: int) -> int:
        """The first position beyond this one at which something is due."""
        every = (self.log, self.evaluate, self.checkpoint)
        return min((examples_seen // c + 1) * c for c in every)


@dataclass(frozen=True)
class Run:
    """The collaborators of one run.

    Attributes:
      dataset: the feed's data set, on the devices.
      test_batches: the test set in batches on the devices, `(devices, per_device, ...)`, anew for
        each call.
      log: None on all processes but the first.
      compiled: what each batch size cost to compile, those before an interruption included.
    """

    schedule: Schedule
    cadence: Cadence
    programs: Programs
    feed: Feed
    dataset: Any
    test_batches: Callable[[], Iterable[Any]]
    log: RunLog | None
    checkpoints: Checkpoints
    clock: Clock
    progress: Progress
    preemption: Preemption
    compile_ahead: bool
    stop_at_phase_end: bool
    compiled: dict[str, dict[str, Any]]


def run_phases(run: Run, state: TrainState, examples_seen: int) -> Outcome:
    """For each phase that is left: its program, its updates, a checkpoint at its end.

    Returns when the last checkpoint is on disk.

    Raises:
      NonFiniteLoss: with the updates between which it happened, and the last good metrics.
    """
    phases = [p for p in run.schedule.phases if p.end_examples > examples_seen]
    for phase, following in zip(phases, [*phases, None][1:], strict=True):
        state, examples_seen, stopped = _run_phase(run, phase, following, state, examples_seen)
        grows = following is not None and following.batch_size != phase.batch_size
        if grows and run.stop_at_phase_end and examples_seen == phase.end_examples:
            run.checkpoints.wait()
            return Outcome.PHASE_END
        if stopped:
            run.checkpoints.wait()
            return Outcome.PREEMPTED
        if grows:
            _release(run, phase.batch_size)
    run.checkpoints.wait()
    return Outcome.FINISHED


def _run_phase(
    run: Run, phase: Phase, following: Phase | None, state: TrainState, examples_seen: int
) -> tuple[TrainState, int, bool]:
    """Updates until the end of the phase, or until asked to stop. The order here is fixed:

    dispatch; then, where due, evaluate, write a row, save a checkpoint; then look for signals. So a
    checkpoint never stands beyond the rows that belong to it.
    """
    program = _program(run, phase.batch_size)
    in_flight: deque[jax.Array] = deque()
    while examples_seen < phase.end_examples:
        points = _next_points(run, phase, examples_seen, program.updates_per_dispatch)
        state, token = _dispatch(run, program, state, points)
        before, examples_seen = examples_seen, points[-1].examples_seen + phase.batch_size
        run.progress.advance(examples_seen - before)
        in_flight.append(token)
        if len(in_flight) > RUN_AHEAD:
            in_flight.popleft().block_until_ready()
        # Tracing wants Python's lock: it begins when the devices have work. A run that stops at the
        # growth may go on with other devices.
        _compile_ahead(run, None if run.stop_at_phase_end else following)

        at_end = examples_seen == run.schedule.end_examples
        due = {
            name: at_end or before // every < examples_seen // every
            for name, every in asdict(run.cadence).items()
        }
        test = evaluate(run, state) if due["evaluate"] else {}
        at_phase_end = examples_seen == phase.end_examples  # a row never mixes two batch sizes
        if due["log"] or due["evaluate"] or at_phase_end:
            state = _write_row(run, state, points[-1], examples_seen, test)
        stopped = run.preemption.requested() and not at_end
        if due["checkpoint"] or stopped or at_phase_end:
            # No checkpoint of a run that is lost shall push out those before.
            _check_finite(run, float(state.sums["loss"]), points[-1], examples_seen)
            _save(run, state, examples_seen, test.get("test_accuracy"))
        if stopped:
            return state, examples_seen, True
    return state, examples_seen, False


def _next_points(run: Run, phase: Phase, examples_seen: int, most: int) -> list[Point]:
    """The updates of one dispatch: until something is due, the phase ends, or it is full."""
    stop = min(run.cadence.next_stop(examples_seen), phase.end_examples)
    count = min(most, -(-(stop - examples_seen) // phase.batch_size))
    return list(islice(run.schedule.points(examples_seen), count))


def _dispatch(
    run: Run, program: TrainProgram, state: TrainState, points: Sequence[Point]
) -> tuple[TrainState, jax.Array]:
    """Sends the batches of some updates and starts them; returns without waiting for the result."""
    # While the devices still compute, they do not wait for what the host prepares.
    before: Any = state.sums["loss"]
    with run.clock.timer("input", counts=before.is_ready):
        # A dispatch of fewer updates than it could hold repeats the last one; it is not run.
        padded = [*points, *[points[-1]] * (program.updates_per_dispatch - len(points))]
        starts = np.array([point.examples_seen for point in padded])
        positions = starts[:, None] + np.arange(points[0].batch_size)
        slots = parallel.local_device_slots(run.programs.mesh)
        batches = run.feed.batch(program.layout.split(positions)[slots])
    rates = np.array([point.learning_rate for point in padded], np.float32)
    scalars = (rates, np.int32(len(points)))
    arguments = parallel.host_arguments(batches, scalars, run.programs.mesh)
    return program.executable(state, *arguments, run.dataset)


def evaluate(run: Run, state: TrainState) -> dict[str, float]:
    """Loss and accuracy over every test example once, by running statistics."""
    # What was dispatched before is training: wait for it outside of the evaluation's time.
    jax.block_until_ready(state.params)
    with run.clock.timer("compile"):
        program = run.programs.evaluation()
    with run.clock.timer("eval"):
        totals: dict[str, float] = {"loss": 0.0, "correct": 0.0, "count": 0.0}
        pending: deque[Any] = deque()
        for batch in run.test_batches():
            pending.append(program(state.params, state.batch_stats, batch, ()))
            if len(pending) > RUN_AHEAD:
                totals = _add(totals, pending.popleft())
        for sums in pending:
            totals = _add(totals, sums)
    return {
        "test_loss": totals["loss"] / totals["count"],
        "test_accuracy": totals["correct"] / totals["count"],
    }


def _add(totals: dict[str, float], sums: Any) -> dict[str, float]:
    return {name: total + float(sums[name]) for name, total in totals.items()}


def _write_row(
    run: Run, state: TrainState, point: Point, examples_seen: int, test: dict[str, float]
) -> TrainState:
    """Writes a row for the updates since the last one; returns the state with its sums at zero."""
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    mean_loss = sums["loss"] / sums["count"]
    seconds, waited_for_input = run.clock.lap()
    row: Row = {
        "examples_seen": examples_seen,
        "updates": point.updates + 1,
        "epoch": examples_seen / run.schedule.recipe.num_examples,
        "phase": point.phase,
        "global_batch_size": point.batch_size,
        "learning_rate": point.learning_rate,
        "momentum": point.momentum,
        "noise_scale": point.noise_scale,
        "train_loss": mean_loss,
        "train_accuracy": sums["correct"] / sums["count"],
        **test,
        "images_per_second": sums["count"] / max(seconds, 1e-9),
        "input_share": waited_for_input / max(seconds, 1e-9),
        "wall_seconds": run.clock.total(),
        **{f"{name}_seconds": run.clock.seconds[name] for name in TIMERS},
    }
    _check_finite(run, mean_loss, point, examples_seen)
    if examples_seen == run.schedule.end_examples:  # no later update shows what the last one did
        _check_finite(run, test["test_loss"], point, examples_seen)
    if run.log is not None:
        run.log.write(row)
    run.progress.row(row)
    return replace(state, sums=parallel.replicate(zero_sums(), run.programs.mesh))


def _check_finite(run: Run, loss: float, point: Point, examples_seen: int) -> None:
    """Raises NonFiniteLoss, on every process alike, if the loss up to `point` is not finite."""
    if math.isfinite(loss):
        return
    if run.log is None:
        raise NonFiniteLoss("the loss is not finite; process 0 tells more")
    rows = run.log.rows
    first = rows[-1]["updates"] + 1 if rows else 1
    last = (
        f"the last good row, at update {rows[-1]['updates']}: train_loss "
        f"{rows[-1]['train_loss']:.4g}, learning_rate {rows[-1]['learning_rate']:.4g}"
        if rows
        else "there is no good row before"
    )
    raise NonFiniteLoss(
        f"the loss is {loss} between updates {first} and {point.updates + 1} (epoch "
        f"{examples_seen / run.schedule.recipe.num_examples:.2f}, batch {point.batch_size}, "
        f"learning rate {point.learning_rate:.4g}); {last}; lower recipe.learning_rate or add "
        "recipe.warmup_epochs, in a new workdir"
    )


def _program(run: Run, global_batch_size: int) -> TrainProgram:
    """The program of this batch size, waited for if need be."""
    run.programs.start(global_batch_size)
    if not run.programs.ready(global_batch_size):
        run.progress.say(f"compiling for batch {global_batch_size}")
    with run.clock.timer("compile"):
        program = run.programs.train(global_batch_size)
    run.compiled[str(global_batch_size)] = asdict(run.programs.times[global_batch_size]) | {
        "num_microbatches": program.layout.num_microbatches
    }
    return program


def _compile_ahead(run: Run, following: Phase | None) -> None:
    """Begins, if that has not happened yet, to compile what comes after this phase's updates."""
    if run.compile_ahead:
        run.programs.start(EVALUATION)
        if following is not None:
            run.programs.start(following.batch_size)


def _release(run: Run, global_batch_size: int) -> None:
    device = run.programs.mesh.local_devices[0]
    before = memory_in_use(device)
    run.programs.release(global_batch_size)
    after = memory_in_use(device)
    if before is not None and after is not None:
        log.info(
            "released batch %d: device memory %.1f -> %.1f MiB",
            global_batch_size,
            before / 2**20,
            after / 2**20,
        )


def _save(run: Run, state: TrainState, examples_seen: int, test_accuracy: float | None) -> None:
    jax.block_until_ready(state.params)
    with run.clock.timer("checkpoint"):
        run.clock.total()
        rows = run.log.rows if run.log is not None else []
        notes = {"seconds": run.clock.seconds, "compiled": run.compiled, "rows": rows}
        run.checkpoints.save(examples_seen, state, notes, test_accuracy)
