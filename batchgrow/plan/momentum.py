"""A recipe at another momentum, which may change during the run.

For an optimizer whose momentum sums gradients the effective rate is lr / (1 - m). A plan with the
momentum m(t) keeps that of a recipe with m0(t) by the learning rate

    curve(t) (1 - m(t)) / (1 - m0(t)).

Where this falls the batch may grow, whether the curve falls or the momentum rises.
"""

from dataclasses import replace

import numpy as np

from batchgrow.plan.curves import Curve
from batchgrow.plan.descent import find_descent
from batchgrow.plan.recipe import Momentum, Recipe, momentum_at


def at_momentum(recipe: Recipe, momentum: Momentum) -> tuple[Recipe, float]:
    """Returns the recipe with the learning rates that keep its effective step at this momentum.

    The second value is the factor of the batch size with which the highest of these learning rates
    is the recipe's highest.
    """
    gain = recipe.coupling.gain
    if momentum is recipe.momentum or not recipe.coupling.sums_momentum:
        return recipe, 1.0
    if not callable(momentum) and not callable(recipe.momentum):
        return recipe, gain(momentum) / gain(recipe.momentum)

    def curve(epoch: float) -> float:
        ratio = gain(momentum_at(recipe.momentum, epoch)) / gain(momentum_at(momentum, epoch))
        return float(recipe.curve(epoch)) * float(ratio)

    boundaries: set[float] | None = set()
    for function in filter(callable, (recipe.curve, recipe.momentum, momentum)):
        known = getattr(function, "boundaries_epochs", None)
        boundaries = None if boundaries is None or known is None else boundaries | {*known}
    jumps = None if boundaries is None else tuple(sorted(boundaries))
    followed = replace(recipe, curve=Curve(curve, jumps))
    return followed, find_descent(recipe).ceiling(0) / find_descent(followed).ceiling(0)


def highest_momentum(recipe: Recipe, momentum: Momentum) -> float:
    """Returns the highest momentum of a run, at 1025 equal distances if it is a function."""
    epochs = np.linspace(0, recipe.num_epochs, 1025)
    return float(np.max(momentum_at(momentum, epochs)))
