"""Gradients that are d updates old, as of asynchronous workers, by momentum and by plan."""

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
RATES = (0.2, 0.02)  # learning rate / (1 - momentum)
PLANS_AT = ((0, 0.2), (4, 0.2), (4, 0.02))  # delay and rate
NUM_EPOCHS = 8.0


class OldGradients(NamedTuple):
    """The last gradients, `(delay, ...)`, and where the oldest is, an int32 scalar."""

    kept: Any
    oldest: jax.Array


def old_gradients(delay: int) -> optax.GradientTransformation:
    """Gives the gradient of `delay` (0 or more) updates before, zeros in the first updates."""
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
    def arm(delay: int, momentum: float, rate: float, plan: str = "decay") -> Arm:
        return Arm(
            {"delay": delay, "momentum": momentum, "rate": rate, "plan": plan},
            {
                "optimizer.delay": delay,
                "recipe.momentum": momentum,
                "recipe.learning_rate": rate * (1 - momentum),
                "plan.name": plan,
            },
        )

    grid = [arm(d, m, rate) for rate in RATES for d in DELAYS for m in MOMENTA]
    return [*grid, *(arm(d, 0.5, rate, plan) for d, rate in PLANS_AT for plan in PLANS[1:])]


def judge(trials: Sequence[Trial]) -> Verdict:
    def of(delay: int, momentum: float, rate: float, plan: str = "decay") -> dict[int, float]:
        labels = {"delay": delay, "momentum": momentum, "rate": rate, "plan": plan}
        return values_of(trials, "test_accuracy", **labels)

    every = {(d, m, rate): of(d, m, rate) for rate in RATES for d in DELAYS for m in MOMENTA}
    momentum = {
        d: paired(f"momentum 0.9 minus 0, delay {d}, rate 0.02", of(d, 0.0, 0.02), of(d, 0.9, 0.02))
        for d in DELAYS
    }
    aged = {
        (d, rate): paired(
            f"delay {d} minus 0, momentum 0, rate {rate}", of(0, 0.0, rate), of(d, 0.0, rate)
        )
        for rate in RATES
        for d in DELAYS[1:]
    }
    noise = {
        (m, rate): {
            d: [
                trial.run.rows[-1][NOISE_SCALE]
                for trial in trials
                if trial.labels == {"delay": d, "momentum": m, "rate": rate, "plan": "decay"}
                and trial.run
                and NOISE_SCALE in trial.run.rows[-1]
            ]
            for d in DELAYS
        }
        for rate in RATES
        for m in MOMENTA
    }
    by_plan = {
        (plan, d, rate): paired(
            f"{plan} minus decay, delay {d}, momentum 0.5, rate {rate}",
            of(d, 0.5, rate),
            of(d, 0.5, rate, plan),
        )
        for d, rate in PLANS_AT
        for plan in PLANS[1:]
    }
    numbers = [
        *(
            number(f"test accuracy, delay {d}, momentum {m}, rate {rate}", values.values())
            for (d, m, rate), values in every.items()
        ),
        *aged.values(),
        *momentum.values(),
        *by_plan.values(),
        *(
            number(f"noise scale at the end, delay {d}, momentum 0.5, rate {r}", noise[0.5, r][d])
            for r in RATES
            for d in DELAYS
        ),
    ]
    kinds = {(m, rate): f"m {m}, rate {rate}" for rate in RATES for m in MOMENTA}
    accuracy_lines = [
        line(trials, words, "delay", "test_accuracy", momentum=m, rate=rate, plan="decay")
        for (m, rate), words in kinds.items()
    ]
    return Verdict(
        numbers,
        [
            chart("Test accuracy by delay", "delay", "test_accuracy", accuracy_lines),
            chart(
                "Noise scale at the end, by delay",
                "delay",
                "noise scale in examples",
                [measured_line(words, noise[kind]) for kind, words in kinds.items()],
            ),
        ],
        f"Gradients {', '.join(map(str, DELAYS[1:]))} updates old change the test accuracy by "
        f"{', '.join(in_points(aged[d, 0.2]) for d in DELAYS[1:])} points at rate 0.2 and by "
        f"{', '.join(in_points(aged[d, 0.02]) for d in DELAYS[1:])} at 0.02. There, momentum 0.9 "
        f"instead of 0 changes it by {', '.join(map(in_points, momentum.values()))} at the delays "
        f"{', '.join(map(str, DELAYS))}. A "
        "growing batch instead of a falling rate changes it by "
        f"{in_points(by_plan['grow', 0, 0.2])} without delay and, with delay 4, by "
        f"{in_points(by_plan['grow', 4, 0.2])} at rate 0.2 and "
        f"{in_points(by_plan['grow', 4, 0.02])} at 0.02.",
    )


STUDY = Study(
    claim="Old gradients act like momentum: the older they are, the less momentum is best.",
    source="Mitliagkas et al. 2016 (asynchrony begets momentum), for random delays",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="5,000 examples of MNIST, one hidden layer of 64 ReLUs, 8 epochs, batch 32, two falls of "
    "the rate by 4. The rate is that of a plain step, learning rate / (1 - momentum). The delay is "
    "constant and counted in updates, also after the batch has grown. Rate 0.02, and what is "
    "compared there, were added after a look at 0.2, where delays of 4 and 16 hardly train. In the "
    "figure m is momentum. Runs whose noise scale is unknown at the end are left out of its rows.",
)
