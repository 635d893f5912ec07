"""Makes the task of a config and its model, whose sizes may come from the data."""

from collections.abc import Callable, Mapping
from typing import Any

from batchgrow.config.fields import FIELDS, own_arguments
from batchgrow.config.kinds import ConfigDict
from batchgrow.data.source import Inputs
from batchgrow.layout import AXIS_NAME
from batchgrow.models import MODELS, make_model
from batchgrow.names import check_types, find, hint, parameters, takes_any
from batchgrow.tasks import Task
from batchgrow.tasks.classification import Classification
from batchgrow.tasks.language import LanguageModel
from batchgrow.tasks.regression import Regression

# The defaults of fields under task, which every config starts with.
CLASSIFICATION = {field.name: field.default for field in FIELDS if field.name.startswith("task.")}
TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "language": LanguageModel,
    "regression": Regression,
}


def make_task(
    config: ConfigDict, axis_name: str | None = AXIS_NAME, facts: Mapping[str, Any] | None = None
) -> Task:
    """Returns the task that a config describes, with its model.

    Args:
      axis_name: the mapped device axis; None for a model on one device.
      facts: sizes that are read from the data (see `datasets.Dataset`). They fill fields that the
        config leaves out.

    Raises:
      ValueError: for an unknown name or a wrong field.
    """
    facts = facts or {}
    make = find(config.task.name, TASKS, "task.name")
    takes = parameters(make)
    fields = _filled(_task_fields(config, make), takes, facts)
    if "model" in takes:
        model = model_fields(config, facts)
        if "num_classes" in takes and model.get("num_classes") is not None:
            fields["num_classes"] = model["num_classes"]
        ghost = config.ghost_batch_size
        fields["model"] = make_model(ghost_batch_size=ghost, axis_name=axis_name, **model)
    missing = [name for name, is_needed in takes.items() if is_needed and name not in fields]
    if missing:
        raise ValueError(
            f"task {config.task.name!r} needs {', '.join(missing)}; set "
            f"{', '.join(f'task.{name}' for name in missing)}"
        )
    check_types(make, fields, "task")
    try:
        return make(**fields)
    except TypeError as error:
        raise ValueError(f"task {config.task.name!r}: {error}") from error


def inputs_of(config: ConfigDict) -> Inputs:
    """Returns the arrays that the task reads (see `tasks.Task`); () for each by its own name.

    Raises:
      ValueError: for an unknown task.
    """
    return getattr(find(config.task.name, TASKS, "task.name"), "inputs", ())


def tokens_of(config: ConfigDict) -> int | None:
    """Returns the tokens of an example, for a task that may read them; None for another."""
    inputs = inputs_of(config)
    reads_tokens = not inputs or any("tokens" in names for names in inputs)
    return config.data.get("context") if reads_tokens else None  # Of a series it counts rows.


def _task_fields(config: ConfigDict, make: Callable[..., Task]) -> dict[str, Any]:
    """Returns `config.task`, where fields of classification that nobody has set may be left over.

    Raises:
      ValueError: for a field that the task does not have.
    """
    takes = parameters(make)
    fields = {name: value for name, value in config.task.to_dict().items() if name != "name"}
    for name, value in list(fields.items()):
        if name in takes or takes_any(make):
            continue
        if value != CLASSIFICATION.get(f"task.{name}"):
            known = [f"task.{name}" for name in takes if name != "model"]
            raise ValueError(
                f"task {config.task.name!r} has no field task.{name}"
                f"{hint(f'task.{name}', known) or '; it has none'}"
            )
        del fields[name]
    return fields


def model_fields(config: ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.model` with the sizes that are read from the data.

    Raises:
      ValueError: if a size is given that does not fit the data.
    """
    fields = config.model.to_dict()
    outputs = "or more" if "num_classes" in facts else ""
    at_least = dict.fromkeys(["vocab_size", "context", "num_classes"], "or more")
    at_least |= {"outputs": outputs}
    for name, comparison in at_least.items():
        given, found = fields.get(name), facts.get(name)
        if given is None or found is None or given == found:
            continue
        if comparison and isinstance(given, int) and given > found:
            continue
        raise ValueError(
            f"model.{name} is {given!r}, but {config.data.name} has {found}; set the field to "
            f"{' '.join(filter(None, (str(found), comparison)))}, or to None"
        )
    if ":" not in fields["name"] and fields["name"] not in MODELS:
        return fields
    return _filled(fields, parameters(find(fields["name"], MODELS, "model.name")), facts)


def own_fields(config: ConfigDict, section: str) -> list[str]:
    """The fields that a section may have because of what it names; "*" stands for any.

    They are the arguments of the model or the task, or of an optimizer or a curve of the user's
    own. The config need not mention them.
    """
    named: dict[str, Mapping[str, Any]] = {"model": MODELS, "task": TASKS}
    if section not in named:
        return own_arguments(config, section)
    chosen = config[section].name
    if ":" not in chosen and chosen not in named[section]:
        return []
    taker = find(chosen, named[section], f"{section}.name")
    return [*parameters(taker), *("*" if takes_any(taker) else "")]


def _filled(
    fields: Mapping[str, Any], takes: Mapping[str, bool], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns `fields`, where facts replace accepted names that are None or left out."""
    more = {k: v for k, v in facts.items() if k in takes and fields.get(k) is None}
    return {**fields, **more}
