"""Turns a config into an experiment of plain values, and checks every field.

Wrong values are found here, before anything is compiled or written.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from batchgrow.config.data import check_data, model_facts, open_data
from batchgrow.config.fields import check, defaults
from batchgrow.config.kinds import ConfigDict
from batchgrow.config.plan import check_layouts, make_plan, warn_of
from batchgrow.config.task import make_task, model_fields
from batchgrow.config.transfer import transferred
from batchgrow.experiment import Cadence, Execution, Experiment, NoiseProbe
from batchgrow.names import call, find, parameters
from batchgrow.optimizer import ByBatch, freeze, optimizer_by_batch
from batchgrow.plan import Plan
from batchgrow.tasks.transfer import Transfer

__all__ = [
    "ConfigDict",
    "check_layouts",
    "make_cadence",
    "make_execution",
    "make_experiment",
    "make_noise_probe",
    "make_plan",
    "make_task",
    "optimizer_of",
    "warn_of",
]


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
    warn_of(plan, of_short_segments=config.run.plan_warnings)
    facts = model_facts(train_data, test_data)
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
    if noise.num_pieces * piece_size > num_examples:
        raise ValueError(
            f"noise.num_pieces {noise.num_pieces} of {piece_size} examples are more than the "
            f"{num_examples} of the training set; set fewer, or a smaller noise.piece_size"
        )
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
