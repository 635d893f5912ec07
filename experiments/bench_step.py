"""Compare an update of the training loop with a bare jitted step.

    python -m experiments.bench_step [--json]

`overhead_ratio` compares the loop of `train` with a jitted step of the same mathematics that is
called repeatedly on one batch. `loss_difference` verifies that the mathematics is the same: it
compares the losses of the first updates of both on the same batches. `ghost_norm_ratio` compares
two bare steps, one with ghost batch norm and one with `flax.linen.BatchNorm`, where the ghost batch
is the whole batch. `noise_cost` is the share that `noise.share=0.01` adds to the time of the loop:
a hundredth of the time to measure an example, divided by the time to train on one. Bursts of the
four programs alternate in one process, and each ratio is the median over the turns. There are two
models: a tiny one and a wide ResNet (--depth=0 leaves it out).
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import flags

from batchgrow.data.stream import Stream
from batchgrow.engine import Engine
from batchgrow.experiment import Experiment, NoiseProbe
from batchgrow.layout import make_mesh
from batchgrow.models import wide_resnet
from batchgrow.plan import Point
from batchgrow.step import TrainState
from experiments import benchmark, synthetic, timing
from experiments.timing import median

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Batch size of the wide ResNet.")
_UPDATES_PER_DISPATCH = flags.DEFINE_integer(
    "updates_per_dispatch", None, "Updates in a call; by default as many as training makes."
)
_TURNS = flags.DEFINE_integer("turns", 25, "Number of bursts of each program.")
_BURST_SECONDS = flags.DEFINE_float(
    "burst_seconds", 0.3, "Approximate length of a burst in seconds."
)
_SECONDS = flags.DEFINE_float("seconds", 120.0, "Time limit for each model: no burst starts later.")

TINY_BATCH_SIZE = 64
NUM_PIECES = 8  # of a measurement: the default of noise.num_pieces
SHARE = 0.01  # noise.share


class BareStep:
    """Momentum SGD with L2 and batch statistics, as one would write it by hand.

    Args:
      model: with fields as in `batchgrow.models`.
      variables: of the model, host arrays.
      batch: `{"image": uint8 (batch, h, w, c), "label": int32 (batch,)}`, which `__call__` uses.
    """

    def __init__(self, model: nn.Module, variables: Any, batch: Any):
        def loss_fn(params: Any, batch_stats: Any, image: Any, label: Any) -> tuple[Any, Any]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                (image.astype(np.float32) - synthetic.MEAN) / synthetic.STD,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return losses.mean(), updated["batch_stats"]

        def step(state: Any, batch: Any, learning_rate: Any) -> tuple[Any, Any]:
            params, batch_stats, trace = state
            (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                params, batch_stats, batch["image"], batch["label"]
            )
            trace = jax.tree.map(
                lambda a, g, w: synthetic.MOMENTUM * a + g + synthetic.WEIGHT_DECAY * w,
                trace,
                gradient,
                params,
            )
            params = jax.tree.map(lambda w, a: w - learning_rate * a, params, trace)
            return (params, batch_stats, trace), loss

        params = variables["params"]
        zeros = jax.tree.map(np.zeros_like, params)
        self._batch = jax.device_put(batch)
        self._state = jax.device_put((params, variables["batch_stats"], zeros))
        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self, num_updates: int) -> int:
        """Makes updates on one batch, waits for the last, and returns their number."""
        loss = jax.numpy.zeros(())
        for _ in range(num_updates):
            self._state, loss = self._step(self._state, self._batch, synthetic.LEARNING_RATE)
        loss.block_until_ready()
        return num_updates

    def mean_loss(self, batches: Any) -> float:
        """Makes an update on each batch; returns the mean of the losses before them."""
        losses = []
        for batch in batches:
            self._state, loss = self._step(self._state, batch, synthetic.LEARNING_RATE)
            losses.append(float(loss))
        return sum(losses) / len(losses)


class Probe:
    """Measurements of the gradient noise, in pieces of one batch.

    Args:
      experiment: whose noise is measured.
    """

    def __init__(self, experiment: Experiment):
        size = experiment.ghost_batch_size
        probe = NoiseProbe(size, NUM_PIECES, every=size * NUM_PIECES, horizon=1.0)
        with Engine(dataclasses.replace(experiment, noise=probe), make_mesh(1)) as engine:
            self._executable = engine.noise().result()
            self._state = engine.initial_state()
        self._engine = engine

    def __call__(self, num_updates: int) -> int:
        """Measures about as many examples as `num_updates` updates have.

        Returns:
          How many updates those are.
        """
        count = max(1, round(num_updates / NUM_PIECES))
        for _ in range(count):
            self._engine.measure_noise(self._executable, self._state, 0)
        return count * NUM_PIECES


def bare_steps(experiment: Experiment) -> dict[str, Any]:
    """The bare step with ghost batch norm and, for the wide ResNet, with flax's batch norm."""
    model: Any = experiment.task.model.clone(axis_name=None)  # type: ignore
    with Engine(experiment, make_mesh(1)) as engine:
        variables = jax.device_get(engine.initial_state().evaluated)
    batch = batches(experiment, 1)[0]
    steps = {"bare": BareStep(model, variables, batch)}
    if isinstance(model, wide_resnet.WideResNet):
        with mock.patch.object(wide_resnet, "GhostBatchNorm", _flax_batch_norm):
            image = np.zeros((1, *batch["image"].shape[1:]), np.float32)
            variables = jax.device_get(model.init(jax.random.key(0), image, train=True))
            steps["flax"] = BareStep(model, variables, batch)
            steps["flax"](1)  # traced while the patch is there
    return steps


def batches(experiment: Experiment, count: int) -> list[Any]:
    """The batches of the first updates of a run."""
    batch_size = experiment.plan.known([])[0].batch_size
    positions = np.arange(count * batch_size).reshape(count, batch_size)
    indices = Stream(experiment.train_data.num_examples, experiment.seed).indices(positions)
    return [experiment.train_data.gather(index) for index in indices]


def _flax_batch_norm(
    ghost_batch_size: int,
    use_running_average: bool,
    axis_name: str | None,
    momentum: float,
    dtype: Any,
) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average, momentum=momentum, epsilon=1e-5, dtype=dtype)


class Turns:
    """After each burst of the loop's updates, a burst of each bare step and of measurements.

    Attributes:
      seconds: of one update, by kind, in each turn.
    """

    def __init__(self, steps: dict[str, Callable[[int], int]]):
        self._steps = steps
        self.seconds: dict[str, list[float]] = {name: [] for name in ("loop", *steps)}
        self._deadline = time.perf_counter() + _SECONDS.value

    def __call__(self, num_updates: int, seconds: float) -> bool:
        """Takes a turn after a burst of the loop; returns whether there have been enough."""
        self.seconds["loop"].append(seconds)
        for name, step in self._steps.items():
            started = time.perf_counter()
            made = step(num_updates)
            self.seconds[name].append((time.perf_counter() - started) / made)
        num_turns = len(self.seconds["loop"])
        return num_turns >= _TURNS.value or time.perf_counter() > self._deadline

    def ratio(self, above: str, below: str) -> float | None:
        """Median over turns of the ratio of two kinds."""
        if below not in self.seconds:
            return None
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return median([a / b for a, b in pairs])


def bench(batch_size: int, *, tiny: bool = False) -> dict[str, Any]:
    """One row of the table; the batch is one ghost batch."""
    experiment = timing.make_experiment(
        [(batch_size, synthetic.most_updates(batch_size))],
        ghost_batch_size=batch_size,
        tiny=tiny,
        updates_per_dispatch=_UPDATES_PER_DISPATCH.value,
    )
    steps = bare_steps(experiment)
    turns = Turns(steps | {"noise": Probe(experiment)})
    bursts = timing.Bursts(_BURST_SECONDS.value, turns)
    first: dict[str, Any] = {}

    def watch(point: Point, state: TrainState) -> bool:
        if not first:  # the first dispatch
            first["updates"] = point.update + 1
            ours = float(state.sums["loss"]) / float(state.sums["count"])
            theirs = steps["bare"].mean_loss(batches(experiment, point.update + 1))
            first["difference"] = abs(ours - theirs) / theirs
        return bursts(point, state)

    timing.train(experiment, watch)
    milliseconds = {k: 1e3 * (median(v) or 0.0) for k, v in turns.seconds.items()}
    return {
        "model": timing.model_name(experiment),
        "batch_size": batch_size,
        "updates_per_dispatch": first["updates"],
        "loop_ms": milliseconds["loop"],
        "bare_ms": milliseconds["bare"],
        "overhead_ratio": turns.ratio("loop", "bare"),
        "flax_norm_ms": milliseconds.get("flax"),
        "noise_cost": SHARE * (turns.ratio("noise", "loop") or 0.0),
        "ghost_norm_ratio": turns.ratio("bare", "flax"),
        "loss_difference": first["difference"],
        "turns": len(turns.seconds["loop"]),
    }


def main() -> str:
    """The table."""
    rows = [bench(TINY_BATCH_SIZE, tiny=True)]
    if timing.DEPTH.value:
        rows.append(bench(_BATCH_SIZE.value))
    notes = ["loop: batchgrow's, with everything except rows, evaluations and checkpoints"]
    return benchmark.report("bench_step", rows, notes, dtype=timing.DTYPE.value)


if __name__ == "__main__":
    benchmark.run(main)
