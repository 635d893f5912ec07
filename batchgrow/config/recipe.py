"""The curves of a config's recipe: learning rate and momentum."""

import logging
from collections.abc import Sequence
from typing import Any

from batchgrow.config.kinds import ConfigDict
from batchgrow.names import call, find, parameters
from batchgrow.optimizer import OPTIMIZERS
from batchgrow.plan import curves
from batchgrow.plan.coupling import coupling_of

log = logging.getLogger(__name__)


def make_curve(recipe: ConfigDict, optimizer: str) -> curves.Curve:
    """Returns the learning-rate curve of `config.recipe`.

    Raises:
      ValueError: for an unknown curve, or without a learning rate for this optimizer.
    """
    rate = recipe.learning_rate
    if rate is None:
        rate = recipe.learning_rates.get(optimizer)
    fields = recipe.to_dict() | {"learning_rate": rate}
    if recipe.curve in curves.CURVES:
        _check_curve(recipe, rate, optimizer)
        fields["start_epochs"] = recipe.decay_start_epochs
    words = f"recipe.curve {recipe.curve!r}"
    curve: curves.LearningRateCurve = call(
        find(recipe.curve, curves.CURVES, "recipe.curve"), fields, words
    )
    if not callable(curve):
        raise ValueError(
            f"{words} returns a {type(curve).__name__}; return a function from the epoch to the "
            "learning rate"
        )
    return curves.with_warmup(curve, recipe.warmup_epochs, recipe.warmup_learning_rate)


def _check_curve(recipe: ConfigDict, rate: float | None, optimizer: str) -> None:
    """Checks what a curve of the library needs; warns of steps that do not happen."""
    if rate is None or not rate > 0:
        known = ", ".join(recipe.learning_rates) or "no optimizer"
        raise ValueError(
            f"recipe.learning_rate {recipe.learning_rate} must be above 0; set it, because this "
            f"config has a learning rate for {known} and none for {optimizer}"
        )
    start = recipe.decay_start_epochs
    if recipe.curve == "cosine" and not 0 <= start < recipe.num_epochs:
        raise ValueError(
            f"recipe.decay_start_epochs {start} must be at least 0 and below "
            f"recipe.num_epochs {recipe.num_epochs}; set one of them"
        )
    if recipe.curve == "step":
        _warn_of_late_steps(recipe.boundaries_epochs, recipe.num_epochs)


def _warn_of_late_steps(boundaries_epochs: Sequence[float], num_epochs: float) -> None:
    """Warns of boundaries after the end of the run, which cause neither a step nor a growth."""
    late = [epoch for epoch in boundaries_epochs if epoch >= num_epochs > 0]
    if late:
        log.warning(
            "recipe.boundaries_epochs: the steps at %s are after recipe.num_epochs %g; nothing "
            "happens there",
            ", ".join(f"{epoch:g}" for epoch in late),
            num_epochs,
        )


def make_momentum(recipe: ConfigDict, optimizer: str) -> float | curves.LearningRateCurve:
    """Returns the momentum of `config.recipe`: a number, or a function of the epoch.

    Raises:
      ValueError: for an unknown curve, or a curve that this optimizer cannot take.
    """
    name = recipe.momentum_curve
    if name == "constant":
        return recipe.momentum if has_momentum(optimizer) else 0.0
    if ":" in optimizer or not has_momentum(optimizer):
        raise ValueError(
            f"recipe.momentum_curve {name!r}: the optimizer {optimizer!r} takes no momentum that "
            "changes; set it to 'constant' or choose another optimizer"
        )
    if name != "one_cycle":
        made = call(
            find(name, {}, "recipe.momentum_curve"),
            recipe.to_dict(),
            f"recipe.momentum_curve {name!r}",
        )
        if not callable(made):
            raise ValueError(
                f"recipe.momentum_curve {name!r} returns a {type(made).__name__}; return a "
                "function from the epoch to the momentum"
            )
        own: Any = made
        return own
    if not 0 < recipe.warmup_epochs < recipe.num_epochs:
        raise ValueError(
            f"recipe.warmup_epochs {recipe.warmup_epochs} must be above 0 and below "
            "recipe.num_epochs: there the momentum of 'one_cycle' is lowest"
        )
    highest, lowest = recipe.momentum, recipe.lowest_momentum
    return curves.one_cycle(highest, lowest, recipe.num_epochs, recipe.warmup_epochs)


def plan_momentum(config: ConfigDict) -> float | curves.LearningRateCurve | None:
    """Returns the momentum of `config.plan`: a number, a function of the epoch, or None.

    None stands for that of the recipe.

    Raises:
      ValueError: for a rise without what it needs.
    """
    recipe, plan = config.recipe, config.plan
    if not plan.momentum_rise_epochs:
        return plan.momentum
    if plan.momentum is None or recipe.momentum_curve != "constant" or ":" in config.optimizer.name:
        raise ValueError(
            f"plan.momentum_rise_epochs {plan.momentum_rise_epochs} needs plan.momentum, a "
            "constant recipe.momentum_curve and an optimizer by name; set them, or set it to 0"
        )
    highest = curves.constant(plan.momentum)
    return curves.with_warmup(highest, plan.momentum_rise_epochs, recipe.momentum)


def has_momentum(name: str) -> bool:
    """Returns whether the optimizer with this name takes a momentum or b1.

    Raises:
      ValueError: for an unknown name.
    """
    if ":" in name:
        return "momentum" in parameters(find(name, {}, "optimizer.name"))
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"unknown optimizer.name {name!r}; choose {known} or module:function")
    return coupling_of(name).uses_momentum
