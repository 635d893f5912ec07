"""Gradients that are d updates old, as of asynchronous workers: which momentum and which noise."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from batchgrow.optimizer import make_optimizer
from batchgrow.plan.noise import NOISE_SCALE
from experiments.lab.setups import small_mnist
from experiments.lab.study import (
    Arm,
    Study,
    Trial,
    Verdict,
    chart,
    in_points,
    line,
    measured_line,
    number,
    paired,
    values_of,
)

DELAYS = (0, 1, 4, 16)
MOMENTA = (0.0, 0.5, 0.9)
PLANS = ("decay", "hybrid", "grow")
DELAY_OF_PLANS = (0, 4)
EFFECTIVE_RATE = 0.2  # learning rate / (1 - momentum)
NUM_EPOCHS = 8.0


class OldGradients(NamedTuple):
    """The last gradients, `(delay, ...)`, and where the oldest is, an int32 scalar."""

    kept: Any
    oldest: jax.Array


def old_gradients(delay: int) -> optax.GradientTransformation:
    """Gives the gradient of `delay` updates before; zeros in the first `delay` updates.

    Raises:
      ValueError: for a delay below 0.
    """
    if delay < 0:
        raise ValueError(f"optimizer.delay {delay} must be 0 or more")

    def init(params: Any) -> OldGradients:
        kept = jax.tree.map(lambda w: jnp.zeros((delay, *w.shape), w.dtype), params)
        return OldGradients(kept, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        old = jax.tree.map(lambda x: x[state.oldest], state.kept)
        kept = jax.tree.map(lambda x, g: x.at[state.oldest].set(g), state.kept, updates)
        return old, OldGradients(kept, (state.oldest + 1) % delay)

    return optax.GradientTransformation(init, update) if delay else optax.identity()


def stale_momentum(
    momentum: float, delay: int, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Momentum by gradients that are `delay` updates old: `optimizer.name` of this study.

    Each update applies a gradient at the parameters of `delay` updates before, as with `delay` + 1
    workers that take turns. Weight decay acts on the present parameters.
    """
    after = make_optimizer("momentum", momentum=momentum, weight_decay=weight_decay)
    return optax.chain(old_gradients(delay), after)


def config() -> Any:
    made = small_mnist(5_000, features=(64,))
    made.optimizer.name = "experiments.lab.stale:stale_momentum"
    made.optimizer.delay = 0
    made.plan.exponent = 1.0
    made.plan.max_batch_size = 500.0
    made.recipe.batch_size = 32
    made.recipe.num_epochs = NUM_EPOCHS
    made.recipe.curve = "step"
    made.recipe.boundaries_epochs = tuple(part * NUM_EPOCHS for part in (0.5, 0.75))
    made.recipe.factor = 0.25
    made.noise.share = 0.1
    made.noise.piece_size = 32
    return made


def arms() -> list[Arm]:
    def arm(delay: int, momentum: float, plan: str = "decay") -> Arm:
        return Arm(
            {"delay": delay, "momentum": momentum, "plan": plan},
            {
                "optimizer.delay": delay,
                "recipe.momentum": momentum,
                "recipe.learning_rate": EFFECTIVE_RATE * (1 - momentum),
                "plan.name": plan,
            },
        )

    grid = [arm(delay, momentum) for delay in DELAYS for momentum in MOMENTA]
    plans = [arm(delay, 0.5, plan) for delay in DELAY_OF_PLANS for plan in PLANS[1:]]
    return [*grid, *plans]


def judge(trials: Sequence[Trial]) -> Verdict:
    def of(delay: int, momentum: float, plan: str = "decay") -> dict[int, float]:
        return values_of(trials, "test_accuracy", delay=delay, momentum=momentum, plan=plan)

    accuracies = {(d, m): of(d, m) for d in DELAYS for m in MOMENTA}
    accuracy = [
        number(f"test accuracy, delay {d}, momentum {m}", values.values())
        for (d, m), values in accuracies.items()
    ]
    lost = {
        m: paired(
            f"delay {DELAYS[-1]} minus 0, momentum {m}",
            accuracies[DELAYS[0], m],
            accuracies[DELAYS[-1], m],
        )
        for m in MOMENTA
    }
    noise = {
        m: {
            d: [
                trial.run.rows[-1][NOISE_SCALE]
                for trial in trials
                if trial.run and trial.labels == {"delay": d, "momentum": m, "plan": "decay"}
            ]
            for d in DELAYS
        }
        for m in MOMENTA
    }
    scales = [number(f"noise scale, delay {d}, momentum 0.5", noise[0.5][d]) for d in DELAYS]
    grown = {
        d: paired(f"grow minus decay, delay {d}, momentum 0.5", of(d, 0.5), of(d, 0.5, "grow"))
        for d in DELAY_OF_PLANS
    }
    plans = [
        number(f"test accuracy, delay {d}, momentum 0.5, {plan}", of(d, 0.5, plan).values())
        for d in DELAY_OF_PLANS
        for plan in PLANS[1:]
    ]

    accuracy_lines = [
        line(trials, f"momentum {m}", "delay", "test_accuracy", momentum=m, plan="decay")
        for m in MOMENTA
    ]
    noise_lines = [measured_line(f"momentum {m}", noise[m]) for m in MOMENTA]
    best = [max(MOMENTA, key=lambda m: _mean(accuracies[d, m])) for d in DELAYS]
    return Verdict(
        [*accuracy, *lost.values(), *plans, *grown.values(), *scales],
        [
            chart("Test accuracy by delay", "delay", "test_accuracy", accuracy_lines),
            chart("Noise scale by delay", "delay", "noise scale in examples", noise_lines),
        ],
        f"With gradients {DELAYS[-1]} updates old the test accuracy changes by "
        f"{', '.join(in_points(lost[m]) for m in MOMENTA)} points at momentum "
        f"{', '.join(map(str, MOMENTA))} and an equal effective rate. The best momentum of "
        f"these is {', '.join(map(str, best))} at the delays {', '.join(map(str, DELAYS))}. A "
        "growing batch instead of a falling rate changes the accuracy by "
        f"{in_points(grown[0])} without delay and by {in_points(grown[4])} with delay 4.",
    )


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values) if values else 0.0


STUDY = Study(
    claim="Old gradients act like momentum: the older they are, the less momentum is best.",
    source="Mitliagkas et al. 2016 (asynchrony begets momentum), for random delays",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="5,000 examples of MNIST, one hidden layer of 64 ReLUs, 8 epochs, batch 32, two falls of "
    f"the rate by 4. Learning rate / (1 - momentum) is {EFFECTIVE_RATE} everywhere, and the delay "
    "is constant and counted in updates, also after the batch has grown.",
)
