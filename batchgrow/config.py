"""From a config to plain values: the recipe, the plan, and a check of every field.

Nothing here touches a device, so a plan can be looked at anywhere and a wrong value is found
before anything is compiled.
"""

import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

from batchgrow import curves
from batchgrow.data.augment import NAMES as AUGMENTATIONS
from batchgrow.data.augment import PADDING
from batchgrow.data.sources import ON_BAD_RECORD
from batchgrow.models import DTYPES, MODELS, make_model
from batchgrow.optimizer import DECAY_ON, NAMES, uses_momentum
from batchgrow.layout import choose_layout
from batchgrow.plan.plan import Recipe, Schedule, grow, hybrid

log = logging.getLogger(__name__)

# An ml_collections.ConfigDict, whose fields no type checker knows.
Config = Any

CURVES = ("constant", "step", "exponential", "inverse_time", "cosine", "polynomial")
PLANS = ("decay", "hybrid", "grow")


def make_schedule(config: Config) -> Schedule:
    """The plan that a config describes.

    Raises:
      ValueError: with the field, for a value that makes no plan.
    """
    recipe, plan = config.recipe, config.plan
    if config.ghost_batch_size < 1:
        raise ValueError(f"ghost_batch_size {config.ghost_batch_size} must be 1 or more")
    name = config.optimizer.name
    if name not in NAMES:
        raise ValueError(f"optimizer.name {name!r} is none of {', '.join(NAMES)}")
    momentum = recipe.momentum if uses_momentum(name) else 0.0
    if plan.momentum >= 0 and not uses_momentum(name):
        raise ValueError(
            f"plan.momentum {plan.momentum}: optimizer.name {name!r} has no momentum; set "
            "plan.momentum to -1 or take another optimizer"
        )
    options: dict[str, Any] = {
        "batch_multiple": plan.batch_multiple or config.ghost_batch_size,
        "max_batch_size": {0: None, -1: math.inf}.get(plan.max_batch_size, plan.max_batch_size),
        "initial_multiple": plan.initial_multiple,
        "momentum": None if plan.momentum < 0 else plan.momentum,
        "exponent": plan.exponent,
        "ladder": plan.ladder,
    }
    try:
        reference = Recipe(
            batch_size=recipe.global_batch_size,
            momentum=momentum,
            learning_rate=_curve(recipe, name),
            num_examples=config.data.num_train_examples,
            num_epochs=recipe.num_epochs,
        )
        match plan.name:
            case "decay":
                return grow(reference, num_growths=0, **options)
            case "hybrid":
                return hybrid(reference, num_growths=plan.num_growths, **options)
            case "grow":
                return grow(reference, **options)
    except ValueError as error:
        raise ValueError(f"recipe or plan: {error}") from error
    raise ValueError(f"plan.name {plan.name!r} is none of {', '.join(PLANS)}")


def _curve(recipe: Config, optimizer: str) -> curves.Curve:
    rate = recipe.learning_rate or recipe.learning_rates.get(optimizer, 0.0)
    if rate <= 0:
        known = ", ".join(recipe.learning_rates) or "none"
        raise ValueError(
            f"recipe.learning_rate {rate} must be above 0: this config has a learning rate of its "
            f"own for these optimizers: {known}; for {optimizer} set it yourself"
        )
    match recipe.curve:
        case "constant":
            curve = curves.constant(rate)
        case "step":
            _warn_of_late_steps(recipe.boundaries_epochs, recipe.num_epochs)
            curve = curves.step(rate, recipe.boundaries_epochs, recipe.factor)
        case "exponential":
            curve = curves.exponential(rate, recipe.decay_rate)
        case "inverse_time":
            curve = curves.inverse_time(rate, recipe.decay_rate)
        case "cosine":
            curve = curves.cosine(rate, recipe.num_epochs, recipe.final_learning_rate)
        case "polynomial":
            final = recipe.final_learning_rate
            curve = curves.polynomial(rate, recipe.num_epochs, recipe.power, final)
        case _:
            raise ValueError(f"recipe.curve {recipe.curve!r} is none of {', '.join(CURVES)}")
    return curves.with_warmup(curve, recipe.warmup_epochs, recipe.warmup_learning_rate)


def _warn_of_late_steps(boundaries_epochs: Sequence[float], num_epochs: float) -> None:
    """A shortened run may leave steps out, but not unnoticed: with them go the growths."""
    late = [epoch for epoch in boundaries_epochs if epoch >= num_epochs > 0]
    if late:
        log.warning(
            "recipe.boundaries_epochs: the steps at %s lie beyond recipe.num_epochs %g; nothing "
            "happens there",
            ", ".join(f"{epoch:g}" for epoch in late),
            num_epochs,
        )


def make_network(config: Config, axis_name: str | None = None) -> Any:
    """The Flax module that a config describes, for one device or for those of `axis_name`.

    Raises:
      ValueError: for a name, dtype or field that is none.
    """
    fields = {k: v for k, v in config.model.to_dict().items() if k != "name"}
    return make_model(
        config.model.name,
        ghost_batch_size=config.ghost_batch_size,
        axis_name=axis_name,
        **fields,
    )


def check(config: Config) -> None:
    """Checks the fields that are not the plan's.

    Raises:
      ValueError: with the field, its value and what it may be.
    """
    run = config.run
    one_of: dict[str, tuple[str, Collection[str]]] = {
        "optimizer.decay_on": (config.optimizer.decay_on, DECAY_ON),
        "data.augment": (config.data.augment, AUGMENTATIONS),
        "data.on_bad_record": (config.data.on_bad_record, ON_BAD_RECORD),
        "model.name": (config.model.name, MODELS),
        "model.dtype": (config.model.dtype, DTYPES),
    }
    for name, (choice, choices) in one_of.items():
        if choice not in choices:
            raise ValueError(f"{name} {choice!r} is none of {', '.join(choices)}")
    _check_images(config)
    if run.max_per_device_batch_size != "auto":
        try:
            whole = int(run.max_per_device_batch_size)
        except (TypeError, ValueError, OverflowError):
            whole = 0
        if whole < 1:
            raise ValueError(
                f"run.max_per_device_batch_size {run.max_per_device_batch_size!r} must be 'auto' "
                "or a number of examples, 1 or more"
            )
    at_least = {
        "seed": (config.seed, 0),
        "data.num_train_examples": (config.data.num_train_examples, 1),
        "data.num_test_examples": (config.data.num_test_examples, 1),
        "model.num_classes": (config.model.num_classes, 2),
        "optimizer.weight_decay": (config.optimizer.weight_decay, 0),
        "run.num_devices": (run.num_devices, 0),
        "run.num_workers": (run.num_workers, 0),
        "run.updates_per_dispatch": (run.updates_per_dispatch, 0),
        "run.eval_batch_size": (run.eval_batch_size, 1),
        "run.keep_checkpoints": (run.keep_checkpoints, 1),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise ValueError(f"{name} {value} must be {least} or more")
    for name in ("log_every_epochs", "evaluate_every_epochs"):
        if not config[name] > 0:
            raise ValueError(f"{name} {config[name]} must be above 0 epochs")
    if not run.checkpoint_every_epochs > 0:
        raise ValueError(
            f"run.checkpoint_every_epochs {run.checkpoint_every_epochs} must be above 0 epochs"
        )
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"label_smoothing {config.label_smoothing} must be at least 0 and below 1")


def _check_images(config: Config) -> None:
    """Checks the fields about images and how they get to the devices."""
    data, run = config.data, config.run
    height, width, channels = data.image_shape
    for name in ("mean", "std"):
        if len(data[name]) != channels:
            raise ValueError(
                f"data.{name} has {len(data[name])} values, data.image_shape {channels} channels; "
                "give one for each"
            )
    if min(data.std) <= 0:
        raise ValueError(f"data.std {tuple(data.std)} must be above 0")
    if data.augment == "crop_flip" and min(height, width) <= PADDING:
        raise ValueError(
            f"data.image_shape {tuple(data.image_shape)}: data.augment 'crop_flip' reflects "
            f"{PADDING} pixels at each edge, which takes {PADDING + 1} or more a side; set "
            "data.augment to 'flip' or 'none'"
        )
    if data.augment == "random_resized_crop":
        if height != width or channels != 3:
            raise ValueError(f"data.image_shape {data.image_shape}: JPEGs become (size, size, 3)")
        if run.resident:
            raise ValueError("run.resident is True, but JPEGs are streamed; set it to False")
        if run.updates_per_dispatch > 1:
            raise ValueError(
                f"run.updates_per_dispatch {run.updates_per_dispatch}: JPEGs are streamed one "
                "update at a time; set it to 0 or 1"
            )


def check_layouts(
    config: Config, schedule: Schedule, num_devices: int, examples_seen: int = 0
) -> None:
    """Lays out every batch of the plan on so many devices.

    Args:
      examples_seen: phases that end before are over, and need not fit these devices.

    Raises:
      ValueError: if one of them cannot be (see `choose_layout`).
    """
    limit = config.run.max_per_device_batch_size
    for phase in schedule.phases:
        if phase.end_examples <= examples_seen:
            continue
        choose_layout(
            phase.batch_size,
            num_devices,
            config.ghost_batch_size,
            math.inf if limit == "auto" else int(limit),
        )
