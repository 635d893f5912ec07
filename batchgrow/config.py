"""From a config to an experiment: plain values, and a check of every field.

A wrong value is found here, before anything is compiled or written.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from batchgrow.data import jpeg
from batchgrow.data.datasets import Dataset, InMemory
from batchgrow.data.jpeg_dataset import JpegDataset
from batchgrow.data.prepared import open_source
from batchgrow.data.records import ON_BAD_RECORD
from batchgrow.data.sources import open_dataset
from batchgrow.data.text import TEXTS, load_text
from batchgrow.experiment import MAX_EXAMPLES, Cadence, Execution, Experiment, NoiseProbe
from batchgrow.layout import AXIS_NAME
from batchgrow.models import make_model
from batchgrow.names import find
from batchgrow.optimizer import OPTIMIZERS, optimizer_by_batch
from batchgrow.plan import (
    FixedPlan,
    Plan,
    Recipe,
    curves,
    follow,
    from_megatron,
    grow,
    hybrid,
    ramp,
)
from batchgrow.plan.coupling import coupling_of
from batchgrow.tasks import Task
from batchgrow.tasks.classification import Classification
from batchgrow.tasks.language import LanguageModel
from batchgrow.tasks.regression import Regression

log = logging.getLogger(__name__)

# An ml_collections.ConfigDict, whose fields no type checker knows.
ConfigDict = Any

CURVES = ("constant", "step", "exponential", "inverse_time", "cosine", "polynomial", "wsd")
PLANS = ("decay", "hybrid", "grow", "ramp", "follow")
TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "language": LanguageModel,
    "regression": Regression,
}


def make_experiment(config: ConfigDict) -> Experiment:
    """The experiment that a config describes; opens its data.

    Raises:
      ValueError: for a wrong field, with its value and what it may be.
    """
    execution = make_execution(config.run)
    train_data, test_data = (open_data(config, split) for split in ("train", "test"))
    plan = make_plan(config, train_data.num_examples)
    task = make_task(config)
    check_data(task, train_data, "train")
    check_data(task, test_data, "test")
    noise = make_noise_probe(config, train_data.num_examples)
    fields = config.optimizer.to_dict()
    average_epochs = fields.pop("average_epochs")
    if average_epochs is not None and not average_epochs > 0:
        raise ValueError(f"optimizer.average_epochs {average_epochs} must be above 0, or None")
    _at_least("optimizer.weight_decay", config.optimizer.weight_decay, 0)
    first = plan.next((), {})
    assert first is not None
    return Experiment(
        name=f"{config.name}:{config.variant}",
        task=task,
        train_data=train_data,
        test_data=test_data,
        plan=plan,
        optimizer=optimizer_by_batch(
            batch_size=plan.recipe.batch_size,
            exponent=plan.exponent,
            momentum=first.momentum,
            **fields,
        ),
        cadence=make_cadence(config, train_data.num_examples, noise),
        seed=_seed(config.seed),
        ghost_batch_size=config.ghost_batch_size or 1,
        noise=noise,
        average_epochs=average_epochs,
        settings=json.loads(config.to_json()),
        execution=execution,
    )


def make_plan(config: ConfigDict, num_examples: int) -> Plan:
    """The plan that a config describes.

    Args:
      num_examples: N, the size of the training set.

    Raises:
      ValueError: with the field, for a value that makes no plan.
    """
    recipe, plan = config.recipe, config.plan
    if config.ghost_batch_size is not None:
        _at_least("ghost_batch_size", config.ghost_batch_size, 1)
    name = config.optimizer.name
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer.name {name!r}; choose {', '.join(OPTIMIZERS)}")
    uses_momentum = coupling_of(name).uses_momentum
    momentum = recipe.momentum if uses_momentum else 0.0
    if plan.momentum is not None and not uses_momentum:
        raise ValueError(
            f"plan.momentum {plan.momentum}: the optimizer {name!r} has no momentum; set "
            "plan.momentum to None or choose another optimizer"
        )
    options: dict[str, Any] = {
        "batch_multiple": plan.batch_multiple or config.ghost_batch_size or 1,
        "max_batch_size": plan.max_batch_size,
        "initial_multiple": plan.initial_multiple,
        "momentum": plan.momentum,
        "exponent": plan.exponent,
        "ladder": plan.ladder,
    }
    try:
        reference = Recipe(
            batch_size=recipe.batch_size,
            momentum=momentum,
            curve=make_curve(recipe, name),
            num_examples=num_examples,
            num_epochs=recipe.num_epochs,
            optimizer=name,
            tokens_per_example=config.data.get("context"),
        )
        if plan.name == "follow":
            return _follow(config, reference, options)
        found = _plan_of(reference, plan, options)
    except ValueError as error:
        raise ValueError(f"recipe or plan: {error}") from error
    for warning in found.warnings:
        log.warning("plan: %s", warning)
    return found


def _plan_of(recipe: Recipe, plan: ConfigDict, options: dict[str, Any]) -> FixedPlan:
    match plan.name:
        case "decay":
            return grow(recipe, num_growths=0, **options)
        case "hybrid":
            return hybrid(recipe, num_growths=plan.num_growths, **options)
        case "grow":
            return grow(recipe, **options)
        case "ramp":
            batches = from_megatron(plan.batches, recipe.batch_size)
            names = ("batch_multiple", "momentum", "exponent")
            return ramp(recipe, batches, **{name: options[name] for name in names})
    raise ValueError(f"unknown plan.name {plan.name!r}; choose {', '.join(PLANS)}")


def _follow(config: ConfigDict, recipe: Recipe, options: dict[str, Any]) -> Plan:
    plan = config.plan
    if config.noise.share is None:
        raise ValueError(
            "plan.name 'follow' needs the measured noise; set noise.share, say to 0.01"
        )
    if plan.initial_multiple != 1.0 or plan.momentum is not None:
        raise ValueError(
            "plan.name 'follow' has neither plan.initial_multiple nor plan.momentum; leave them"
        )
    names = ("max_batch_size", "batch_multiple", "exponent", "ladder")
    return follow(
        recipe,
        factor=plan.factor,
        decide_every_epochs=plan.decide_every_epochs,
        **{name: options[name] for name in names},
    )


def make_curve(recipe: ConfigDict, optimizer: str) -> curves.Curve:
    """The learning-rate curve of `config.recipe`.

    Raises:
      ValueError: for an unknown curve, or without a learning rate for this optimizer.
    """
    rate = recipe.learning_rate or recipe.learning_rates.get(optimizer, 0.0)
    if rate <= 0:
        known = ", ".join(recipe.learning_rates) or "no optimizer"
        raise ValueError(
            f"recipe.learning_rate {recipe.learning_rate} must be above 0; set it, because this "
            f"config has a learning rate for {known} and none for {optimizer}"
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
            final, start = recipe.final_learning_rate, recipe.decay_start_epochs
            curve = curves.cosine(rate, recipe.num_epochs, final, start)
        case "polynomial":
            final = recipe.final_learning_rate
            curve = curves.polynomial(rate, recipe.num_epochs, recipe.power, final)
        case "wsd":
            final = recipe.final_learning_rate
            curve = curves.wsd(rate, recipe.num_epochs, recipe.decay_epochs, recipe.power, final)
        case _:
            raise ValueError(f"unknown recipe.curve {recipe.curve!r}; choose {', '.join(CURVES)}")
    return curves.with_warmup(curve, recipe.warmup_epochs, recipe.warmup_learning_rate)


def _warn_of_late_steps(boundaries_epochs: Sequence[float], num_epochs: float) -> None:
    """A shortened run may leave steps out, but the user should know: growths go with them."""
    late = [epoch for epoch in boundaries_epochs if epoch >= num_epochs > 0]
    if late:
        log.warning(
            "recipe.boundaries_epochs: the steps at %s are after recipe.num_epochs %g; nothing "
            "happens there",
            ", ".join(f"{epoch:g}" for epoch in late),
            num_epochs,
        )


def make_task(config: ConfigDict, axis_name: str | None = AXIS_NAME) -> Task:
    """The task that a config describes, with its model.

    Args:
      axis_name: the mapped device axis; None for a model on one device.

    Raises:
      ValueError: for an unknown name or a wrong field.
    """
    model_fields, fields = config.model.to_dict(), config.task.to_dict()
    model = make_model(
        model_fields.pop("name"),
        ghost_batch_size=config.ghost_batch_size,
        axis_name=axis_name,
        **model_fields,
    )
    make = find(fields.pop("name"), TASKS, "task.name")
    if make is Classification and "num_classes" not in fields:
        fields["num_classes"] = config.model.get("num_classes", 0)
    if make is LanguageModel and config.data.name in TEXTS:
        text = load_text(config.data.name, config.data.train_split, config.run.data_dir)
        fields["bytes_per_token"] = text.bytes_per_token
        if len(text.vocabulary) > config.model.vocab_size:
            raise ValueError(
                f"model.vocab_size is {config.model.vocab_size}, but {config.data.name} has "
                f"{len(text.vocabulary)} different tokens; set the field to that or more"
            )
    try:
        return make(model, **fields)
    except TypeError as error:
        raise ValueError(f"task {config.task.name!r}: {error}") from error


def open_data(config: ConfigDict, split: str) -> Dataset:
    """The "train" or "test" data of a config.

    Raises:
      ValueError: if it is not there, or has another size than the config says.
    """
    data = config.data
    name, data_dir = data[f"{split}_split"], config.run.data_dir
    if config.run.input == "workers":
        found: Dataset = _open_jpegs(config, split)
    else:
        found = open_dataset(data.name, name, data_dir=data_dir, context=data.get("context"))
    expected = data[f"num_{split}_examples"]
    if expected is not None and found.num_examples != expected:
        raise ValueError(
            f"data.num_{split}_examples is {expected}, but {data.name} has {found.num_examples} "
            f"examples in its {split} split; set the field to that or to None, or point "
            "run.data_dir to the right data"
        )
    return found


def _open_jpegs(config: ConfigDict, split: str) -> JpegDataset:
    data, is_training = config.data, split == "train"
    if data.on_bad_record not in ON_BAD_RECORD:
        raise ValueError(
            f"unknown data.on_bad_record {data.on_bad_record!r}; choose {', '.join(ON_BAD_RECORD)}"
        )
    if (config.run.updates_per_dispatch or 1) > 1:
        raise ValueError(
            f"run.updates_per_dispatch {config.run.updates_per_dispatch}: worker processes feed "
            "one update at a time; set it to None or 1"
        )
    size = _at_least("data.image_size", data.get("image_size") or 0, 1)
    crop: Any = partial(jpeg.evaluation_crop, image_size=size)
    if is_training:
        crop = partial(jpeg.training_crop, seed=config.seed)
    return JpegDataset(
        open_source(data.name, data[f"{split}_split"], config.run.data_dir, decode=False),
        crop,
        size,
        config.model.num_classes,
        data.on_bad_record if is_training else "stop",
    )


def check_data(task: Task, data: Dataset, split: str) -> None:
    """Lets the task check a split that is held in memory.

    Raises:
      ValueError: if the task cannot train on it.
    """
    check = getattr(task, "check", None)
    if check is not None and isinstance(data, InMemory):
        check(data.arrays, split)


def make_noise_probe(config: ConfigDict, num_examples: int) -> NoiseProbe | None:
    """When and how `config.noise` measures the gradient noise; None if it does not.

    Raises:
      ValueError: for a wrong field.
    """
    noise = config.noise
    if noise.share is None:
        return None
    if not 0 < noise.share <= 1:
        raise ValueError(f"noise.share {noise.share} must be above 0 and at most 1, or None")
    piece_size = noise.piece_size or config.ghost_batch_size
    if piece_size is None:
        raise ValueError("noise.piece_size is not set; set it, as there is no ghost_batch_size")
    return NoiseProbe(
        piece_size=piece_size,
        num_pieces=noise.num_pieces,
        every=round(noise.num_pieces * piece_size / noise.share),
        horizon=noise.horizon_epochs * num_examples,
    )


def make_cadence(config: ConfigDict, num_examples: int, noise: NoiseProbe | None) -> Cadence:
    """How often things happen, in examples.

    Raises:
      ValueError: for a number of epochs that is not above 0.
    """
    fields = {
        "log": ("log_every_epochs", config.log_every_epochs),
        "evaluate": ("evaluate_every_epochs", config.evaluate_every_epochs),
        "checkpoint": ("run.checkpoint_every_epochs", config.run.checkpoint_every_epochs),
    }
    for name, epochs in fields.values():
        if not 0 < epochs < math.inf:
            raise ValueError(f"{name} {epochs} must be a finite number of epochs above 0")
    every = {k: max(1, round(epochs * num_examples)) for k, (_, epochs) in fields.items()}
    return Cadence(**every, noise=noise.every if noise else MAX_EXAMPLES)


def make_execution(run: ConfigDict) -> Execution:
    """How `config.run` says to execute an experiment.

    Raises:
      ValueError: for a wrong field.
    """
    for name, least in {"num_workers": 0, "eval_batch_size": 1, "keep_checkpoints": 1}.items():
        _at_least(f"run.{name}", run[name], least)
    for name in ("num_devices", "updates_per_dispatch", "max_microbatch_size"):
        if run[name] is not None:
            _at_least(f"run.{name}", run[name], 1)
    fields: Mapping[str, Any] = run.to_dict()
    return Execution(**{k: v for k, v in fields.items() if k in Execution.__dataclass_fields__})


def _seed(seed: int) -> int:
    """The seed; beyond 32 bits it would collide with the number of the epoch."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} must be 0 or more and below 2**32 = {2**32}")
    return seed


def _at_least(name: str, value: Any, least: int) -> Any:
    if not value >= least:
        raise ValueError(f"{name} {value} must be {least} or more")
    return value


def check_layouts(experiment_plan: Plan, num_devices: int, config: ConfigDict) -> None:
    """Lays out every batch size of a plan on so many devices.

    Raises:
      ValueError: if one cannot be laid out (see `possible_layouts`).
    """
    from batchgrow.layout import possible_layouts

    limit = config.run.max_microbatch_size or math.inf
    for size in experiment_plan.batch_sizes():
        possible_layouts(size, num_devices, config.ghost_batch_size or 1, limit)
