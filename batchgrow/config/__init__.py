"""Turns a config into an experiment of plain values, and checks every field.

Wrong values are found here, before anything is compiled or written.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from batchgrow.config.data import check_data, facts_of, open_data
from batchgrow.config.fields import PLANS, check, defaults
from batchgrow.config.kinds import ConfigDict
from batchgrow.config.recipe import has_momentum, make_curve, make_momentum, plan_momentum
from batchgrow.config.task import make_task, model_fields, tokens_of
from batchgrow.config.transfer import transferred
from batchgrow.experiment import Cadence, Execution, Experiment, NoiseProbe
from batchgrow.layout import possible_layouts
from batchgrow.names import call, find, parameters
from batchgrow.optimizer import ByBatch, freeze, optimizer_by_batch
from batchgrow.plan import (
    FixedPlan,
    Plan,
    Recipe,
    follow,
    from_megatron,
    grow,
    hybrid,
    ramp,
)
from batchgrow.tasks.transfer import Transfer

log = logging.getLogger(__name__)


def make_experiment(config: ConfigDict, *, to_read: bool = True) -> Experiment:
    """Returns the experiment that a config describes, and opens its data.

    Args:
      to_read: whether examples will be read (see `open_data`); a compiler needs their shapes only.

    Raises:
      ValueError: for a wrong field, with its value and what it may be.
    """
    check(config)
    execution = make_execution(config.run)
    train_data = open_data(config, "train", to_read=to_read)
    test_data = open_data(config, "test", to_read=to_read)
    plan = make_plan(config, train_data.num_examples)
    if config.run.plan_warnings:
        warn_of(plan)
    facts = facts_of(train_data, test_data)
    task = make_task(config, facts=facts)
    check_data(task, train_data, "train")
    check_data(task, test_data, "test")
    task = transferred(config, task, train_data.example, to_read=to_read)
    settings = json.loads(config.to_json())
    settings["model"] |= json.loads(json.dumps(model_fields(config, facts)))
    first = plan.next((), {})
    assert first is not None
    optimizer = optimizer_of(config, plan, first.momentum)
    return Experiment(
        name=f"{config.name}:{config.variant}" if config.variant else config.name,
        task=task,
        train_data=train_data,
        test_data=test_data,
        plan=plan,
        optimizer=freeze(optimizer, task.is_frozen) if isinstance(task, Transfer) else optimizer,
        cadence=make_cadence(config, train_data.num_examples),
        seed=config.seed,
        ghost_batch_size=config.ghost_batch_size or 1,
        noise=make_noise_probe(config, train_data.num_examples),
        average_epochs=config.optimizer.average_epochs,
        settings=settings,
        defaults=defaults(config),
        execution=execution,
    )


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
        if plan.name == "follow":
            return _follow(config, reference, options)
        found = _plan_of(reference, plan, options)
    except ValueError as error:
        raise ValueError(f"recipe or plan: {error}") from error
    return found


def warn_of(plan: Plan) -> None:
    """Logs what makes a plan differ from its recipe in practice."""
    for warning in plan.warnings:
        log.warning("plan: %s", warning)


def _plan_of(recipe: Recipe, plan: ConfigDict, options: dict[str, Any]) -> FixedPlan:
    match plan.name:
        case "decay":
            return grow(recipe, num_growths=0, **options)
        case "hybrid":
            return hybrid(recipe, num_growths=plan.num_growths, **options)
        case "grow":
            return grow(recipe, **options)
        case "ramp":
            return _ramp(recipe, plan, options)
    raise ValueError(f"unknown plan.name {plan.name!r}; choose {', '.join(PLANS)}")


def optimizer_of(config: ConfigDict, plan: Plan, momentum: float) -> ByBatch:
    """Returns the optimizer of each batch size that a config describes, without learning rate.

    Args:
      plan: its recipe has the batch size that the fields are for.
      momentum: the momentum of the plan.

    Raises:
      ValueError: for a wrong field of `config.optimizer`.
    """
    fields = config.optimizer.to_dict() | {"momentum": momentum}
    name = fields.pop("name")
    del fields["average_epochs"]
    if ":" not in name:
        return optimizer_by_batch(
            name,
            batch_size=plan.recipe.batch_size,
            exponent=plan.exponent,
            changing_momentum=plan.momentum_curve is not None,
            **fields,
        )
    function = find(name, {}, "optimizer.name")
    for field in ("weight_decay", "l1", "clip_norm"):
        if fields[field] and field not in parameters(function):
            raise ValueError(
                f"optimizer.{field} is {fields[field]}, but {name} has no argument {field}; add "
                f"it, or set the field to {'None' if field == 'clip_norm' else '0.0'}"
            )
    made = call(function, fields, f"optimizer.name {name!r}")
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            f"optimizer.name {name!r} returns a {type(made).__name__}; return an "
            "optax.GradientTransformation without a learning rate"
        )
    if _descends(made):
        raise ValueError(
            f"optimizer.name {name!r} returns steps along the negative gradient: it already has a "
            "learning rate, which batchgrow applies; return it without one, for example "
            "optax.scale_by_adam() instead of optax.adam(...)"
        )
    return made


def _descends(optimizer: optax.GradientTransformation) -> bool:
    """Whether the first update points down a gradient of ones, as with a learning rate."""
    params = {"kernel": jnp.full((2, 2), 0.01), "bias": jnp.zeros(2)}
    gradient = jax.tree.map(jnp.ones_like, params)
    try:
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return sum(float(jnp.sum(update)) for update in jax.tree.leaves(updates)) < 0
    except Exception:  # It may be for the parameters of one model only.
        return False


def _ramp(recipe: Recipe, plan: ConfigDict, options: dict[str, Any]) -> FixedPlan:
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


def make_noise_probe(config: ConfigDict, num_examples: int) -> NoiseProbe | None:
    """Returns how `config.noise` measures the gradient noise; None if it does not.

    Raises:
      ValueError: for a wrong field.
    """
    noise = config.noise
    if noise.share is None:
        return None
    piece_size = noise.piece_size or config.ghost_batch_size
    if piece_size is None:
        raise ValueError("noise.piece_size and ghost_batch_size are not set; set one of them")
    return NoiseProbe(
        piece_size=piece_size,
        num_pieces=noise.num_pieces,
        every=round(noise.num_pieces * piece_size / noise.share),
        horizon=noise.horizon_epochs * num_examples,
        by_layer=noise.by_layer,
    )


def make_cadence(config: ConfigDict, num_examples: int) -> Cadence:
    """Returns the intervals of logging, evaluation and checkpoints, in examples."""
    epochs = {
        "log": config.log_every_epochs,
        "evaluate": config.evaluate_every_epochs,
        "checkpoint": config.run.checkpoint_every_epochs,
    }
    every = {name: max(1, round(value * num_examples)) for name, value in epochs.items()}
    return Cadence(**every, trace_per_decade=config.trace.per_decade)


def make_execution(run: ConfigDict) -> Execution:
    """Returns the execution that `config.run` describes."""
    fields: Mapping[str, Any] = run.to_dict()
    return Execution(**{k: v for k, v in fields.items() if k in Execution.__dataclass_fields__})


def check_layouts(plan: Plan, num_devices: int, config: ConfigDict) -> None:
    """Checks that every batch size of a plan can be laid out on the devices.

    Raises:
      ValueError: if one cannot be laid out (see `possible_layouts`).
    """
    limit = config.run.max_microbatch_size or math.inf
    for size in plan.batch_sizes():
        possible_layouts(size, num_devices, config.ghost_batch_size or 1, limit)
