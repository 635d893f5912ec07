"""What an update of the training loop costs beside a bare hand-written step.

    python -m experiments.bench_step [--json]

`overhead_ratio` compares the loop as `train` runs it, every line of it, with a jitted step of the
same mathematics that is called again and again on one batch; `loss_difference` shows that it is the
same, by the loss after a few updates of each. `ghost_norm_ratio` compares two such bare steps, with
ghost batch norm and with `flax.linen.BatchNorm`, where the ghost batch is the whole batch. Bursts
of the three take turns in one process; each ratio is the median of the ratios within a turn. Two
models: a tiny one, and a wide ResNet (--depth=0 leaves it out).
"""

import time
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import flags

from batchgrow.config import Config
from batchgrow.loop import Run, run_phases
from batchgrow.models import make_model, wide_resnet
from batchgrow.state import TrainState
from experiments import synthetic, timing
from experiments.timing import median

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Of the wide ResNet.")
_UPDATES_PER_DISPATCH = flags.DEFINE_integer("updates_per_dispatch", 0, "As in config.run.")
_TURNS = flags.DEFINE_integer("turns", 25, "Bursts of each kind.")
_BURST_SECONDS = flags.DEFINE_float("burst_seconds", 0.3, "Length of a burst, about.")
_SECONDS = flags.DEFINE_float("seconds", 120.0, "No turn of a model begins later than this.")

MOMENTUM = 0.9
TINY_BATCH_SIZE = 64


class BareStep:
    """Momentum SGD with L2 and batch statistics on one batch, as one would write it by hand.

    Args:
      model: with fields as in `batchgrow.models`.
      config: what `timing.make_config` gives.
      variables: of the model, host arrays.
      batch: uint8 images `(batch, h, w, c)` and int32 labels.
    """

    def __init__(self, model: nn.Module, config: Config, variables: Any, batch: tuple[Any, Any]):
        weight_decay = config.optimizer.weight_decay
        mean, std = config.data.mean[0], config.data.std[0]

        def loss_fn(params: Any, batch_stats: Any, image: Any, label: Any) -> tuple[Any, Any]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                (image.astype(np.float32) - mean) / std,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return losses.mean(), updated["batch_stats"]

        def step(state: Any, image: Any, label: Any, learning_rate: Any) -> tuple[Any, Any]:
            params, batch_stats, trace = state
            (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                params, batch_stats, image, label
            )
            trace = jax.tree.map(
                lambda a, g, w: MOMENTUM * a + g + weight_decay * w, trace, gradient, params
            )
            params = jax.tree.map(lambda w, a: w - learning_rate * a, params, trace)
            return (params, batch_stats, trace), loss

        params = variables["params"]
        zeros = jax.tree.map(np.zeros_like, params)
        self._batch = jax.device_put(batch)
        self._state = jax.device_put((params, variables["batch_stats"], zeros))
        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self, num_updates: int) -> jax.Array:
        """So many updates; waits for the last, and returns the loss before it."""
        loss = jax.numpy.zeros(())
        for _ in range(num_updates):
            self._state, loss = self._step(self._state, *self._batch, synthetic.LEARNING_RATE)
        return loss.block_until_ready()


def bare_steps(config: Config, state: TrainState, batch: tuple[Any, Any]) -> dict[str, BareStep]:
    """The bare step with ghost batch norm and, for the wide ResNet, with flax's batch norm."""
    fields = {k: v for k, v in config.model.to_dict().items() if k != "name"}

    def make() -> nn.Module:
        return make_model(config.model.name, ghost_batch_size=config.ghost_batch_size, **fields)

    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    steps = {"bare": BareStep(make(), config, variables, batch)}
    if config.model.name == "wide_resnet":
        with mock.patch.object(wide_resnet, "GhostBatchNorm", _flax_batch_norm):
            image = np.zeros((1, *config.data.image_shape), np.float32)
            variables = jax.device_get(make().init(jax.random.key(0), image, train=True))
            steps["flax"] = BareStep(make(), config, variables, batch)
            steps["flax"](1)  # traced while the patch is there
    return steps


def _flax_batch_norm(
    ghost_batch_size: int, use_running_average: bool, axis_name: str | None, dtype: Any
) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average, momentum=0.9, epsilon=1e-5, dtype=dtype)


class Turns:
    """After each burst of the loop's updates, a burst of each bare step.

    Attributes:
      seconds: of one update, by kind, in each turn.
    """

    def __init__(self, steps: dict[str, BareStep], updates_per_dispatch: int):
        self._steps = steps
        self._updates_per_dispatch = updates_per_dispatch
        self.seconds: dict[str, list[float]] = {name: [] for name in ("loop", *steps)}
        self._deadline = time.perf_counter() + _SECONDS.value

    def __call__(self, num_dispatches: int, seconds: float) -> bool:
        """A turn, after a burst of the loop; whether there have been enough."""
        self.seconds["loop"].append(seconds / self._updates_per_dispatch)
        num_updates = num_dispatches * self._updates_per_dispatch
        for name, step in self._steps.items():
            started = time.perf_counter()
            step(num_updates)
            self.seconds[name].append((time.perf_counter() - started) / num_updates)
        num_turns = len(self.seconds["loop"])
        return num_turns >= _TURNS.value or time.perf_counter() > self._deadline

    def ratio(self, above: str, below: str) -> float | None:
        """Median over turns of the ratio of two kinds."""
        if below not in self.seconds:
            return None
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return median([a / b for a, b in pairs])


def loss_difference(run: Run, state: TrainState, bare: BareStep) -> tuple[float, TrainState]:
    """How far apart, relatively, the losses of the loop's program and of the bare step are.

    Both make three updates on the same examples from the same state, which they change.
    """
    (phase,) = run.schedule.phases
    program = run.programs.train(phase.batch_size)
    updates = program.updates_per_dispatch
    positions = np.tile(np.arange(phase.batch_size), (updates, 1))
    batches = run.feed.batch(program.layout.split(positions))
    rates = np.full(updates, synthetic.LEARNING_RATE, np.float32)
    sums = [0.0]
    for _ in range(3):
        state, token = program.executable(state, batches, rates, np.int32(1), run.dataset)
        sums.append(float(token))
    ours, theirs = (sums[3] - sums[2]) / phase.batch_size, float(bare(3))
    return abs(ours - theirs) / theirs, state


def bench(config: Config) -> dict[str, Any]:
    """One row of the table; the batch is one ghost batch."""
    config.run.updates_per_dispatch = _UPDATES_PER_DISPATCH.value
    batch_size = config.ghost_batch_size
    phases = [(batch_size, timing.UNLIMITED)]

    def watch(size: int, token: jax.Array) -> bool:
        return bursts(size, token)

    with timing.watched_run(config, phases, watch, compile_ahead=False) as (run, state):
        index = run.feed.batch(np.arange(batch_size))["index"]
        batch = (run.feed.dataset["image"][index], run.feed.dataset["label"][index])
        steps = bare_steps(config, state, batch)
        updates_per_dispatch = run.programs.updates_per_dispatch(batch_size)
        turns = Turns(steps, updates_per_dispatch)
        bursts = timing.Bursts(_BURST_SECONDS.value, turns)
        difference, state = loss_difference(run, state, steps["bare"])
        run_phases(run, state, 0)
    milliseconds = {k: 1e3 * (median(v) or 0.0) for k, v in turns.seconds.items()}
    return {
        "model": timing.model_name(config),
        "batch_size": batch_size,
        "updates_per_dispatch": updates_per_dispatch,
        "loop_ms": milliseconds["loop"],
        "bare_ms": milliseconds["bare"],
        "overhead_ratio": turns.ratio("loop", "bare"),
        "flax_norm_ms": milliseconds.get("flax"),
        "ghost_norm_ratio": turns.ratio("bare", "flax"),
        "loss_difference": difference,
        "turns": len(turns.seconds["loop"]),
    }


def main() -> str:
    """The table."""
    rows = [bench(timing.make_config(ghost_batch_size=TINY_BATCH_SIZE, tiny=True))]
    if timing.DEPTH.value:
        rows.append(bench(timing.make_config(ghost_batch_size=_BATCH_SIZE.value)))
    notes = ["loop: batchgrow's, with everything but rows, evaluations and checkpoints"]
    return timing.report("bench_step", rows, notes)


if __name__ == "__main__":
    timing.run(main)
