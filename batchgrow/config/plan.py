"""Makes the plan of a config, and checks that devices can run it."""

import logging
import math
import re
from typing import Any

from batchgrow.config.fields import FIELDS, PLANS, check
from batchgrow.config.kinds import ConfigDict
from batchgrow.config.recipe import has_momentum, make_curve, make_momentum, plan_momentum
from batchgrow.config.task import tokens_of
from batchgrow.layout import possible_layouts
from batchgrow.plan import FixedPlan, Plan, Recipe, follow, from_megatron, grow, hybrid, ramp
from batchgrow.plan.growth import check_short

log = logging.getLogger(__name__)
ARGUMENTS = {
    section: [field.name.partition(".")[2] for field in FIELDS if field.name.startswith(section)]
    for section in ("recipe", "plan")
}


def make_plan(config: ConfigDict, num_examples: int) -> Plan:
    """Returns the plan that a config describes.

    Args:
      num_examples: N, the size of the training set.

    Raises:
      ValueError: for a value that makes no plan. The message names the field.
    """
    check(config)
    recipe, plan = config.recipe, config.plan
    for field in ("batch_size", "num_epochs"):
        if recipe[field] is None:
            raise ValueError(f"recipe.{field} is not set")
    name = config.optimizer.name
    if plan.momentum is not None and not has_momentum(name):
        raise ValueError(
            f"plan.momentum {plan.momentum}: the optimizer {name!r} has no momentum; set "
            "plan.momentum to None or choose another optimizer"
        )
    options: dict[str, Any] = {
        "batch_multiple": plan.batch_multiple or config.ghost_batch_size or 1,
        "max_batch_size": plan.max_batch_size,
        "initial_multiple": plan.initial_multiple,
        "momentum": plan_momentum(config),
        "exponent": plan.exponent,
        "ladder": plan.ladder,
    }
    try:
        reference = Recipe(
            batch_size=recipe.batch_size,
            momentum=make_momentum(recipe, name),
            curve=make_curve(recipe, name),
            num_examples=num_examples,
            num_epochs=recipe.num_epochs,
            optimizer=name,
            tokens_per_example=tokens_of(config),
        )
        if recipe.batch_size > reference.end_examples:
            raise ValueError(
                f"recipe.batch_size {recipe.batch_size:,} is more than the "
                f"{reference.end_examples:,} examples of all epochs; take a smaller one"
            )
        return _plan_of(config, reference, options)
    except ValueError as error:
        raise ValueError(_with_field(str(error))) from error


def _with_field(said: str) -> str:
    """What a recipe or a plan says of an argument, with the section of the field before it."""
    first = re.split(r"\W", said, maxsplit=1)[0]
    sections = [section for section, names in ARGUMENTS.items() if first in names]
    if len(sections) == 1:
        return f"{sections[0]}.{said}"
    return said if first in ARGUMENTS else f"recipe or plan: {said}"


def _plan_of(config: ConfigDict, recipe: Recipe, options: dict[str, Any]) -> Plan:
    plan = config.plan
    match plan.name:
        case "decay":
            return grow(recipe, num_growths=0, **options)
        case "hybrid":
            return hybrid(recipe, num_growths=plan.num_growths, **options)
        case "grow":
            return grow(recipe, **options)
        case "ramp":
            return _ramp(plan, recipe, options)
        case "follow":
            return _follow(config, recipe, options)
    raise ValueError(f"unknown plan.name {plan.name!r}; choose {', '.join(PLANS)}")


def _ramp(plan: ConfigDict, recipe: Recipe, options: dict[str, Any]) -> FixedPlan:
    if plan.initial_multiple != 1.0:
        raise ValueError(
            f"plan.initial_multiple {plan.initial_multiple}: plan.name 'ramp' has its first batch "
            "in plan.batches; set it to 1.0"
        )
    names = ("batch_multiple", "momentum", "exponent")
    batches = from_megatron(plan.batches, recipe.batch_size)
    found = ramp(recipe, batches, **{name: options[name] for name in names})
    largest = max(found.batch_sizes())
    if plan.max_batch_size is not None and largest > plan.max_batch_size:
        raise ValueError(
            f"plan.max_batch_size {plan.max_batch_size:g} is less than the batch {largest} of "
            "plan.batches; raise it, or set it to None"
        )
    return found


def _follow(config: ConfigDict, recipe: Recipe, options: dict[str, Any]) -> Plan:
    plan = config.plan
    if config.noise.share is None:
        raise ValueError(
            "plan.name 'follow' needs the measured noise; set noise.share, for example to 0.01"
        )
    if plan.initial_multiple != 1.0 or plan.momentum is not None:
        raise ValueError(
            "plan.name 'follow' takes no plan.initial_multiple or plan.momentum; do not set them"
        )
    names = ("max_batch_size", "batch_multiple", "exponent", "ladder")
    return follow(
        recipe,
        factor=plan.factor,
        decide_every_epochs=plan.decide_every_epochs,
        **{name: options[name] for name in names},
    )


def warn_of(plan: Plan, *, of_short_segments: bool = True) -> None:
    """Logs what makes a plan differ from its recipe in practice.

    Args:
      plan: the plan.
      of_short_segments: whether to log also that a batch size has few updates.
    """
    left_out = () if of_short_segments else check_short(plan.recipe, plan.known())
    for warning in plan.warnings:
        if warning not in left_out:
            log.warning("plan: %s", warning)


def check_layouts(plan: Plan, num_devices: int, config: ConfigDict) -> None:
    """Checks that every batch size of a plan can be laid out on the devices.

    Raises:
      ValueError: if one cannot be laid out (see `possible_layouts`).
    """
    limit = config.run.max_microbatch_size or math.inf
    for size in plan.batch_sizes():
        possible_layouts(size, num_devices, config.ghost_batch_size or 1, limit)
