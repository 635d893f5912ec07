"""List all fields of a config with their values and their meanings.

    python -m experiments.fields --config=configs/digits.py:hybrid

Arguments of the model and the task that the config file does not mention are listed with their
defaults; None also stands for a size that is read from the data. The meanings are from
batchgrow/config/fields.py and from the docstrings of the model and the task.
"""

import inspect
import re
from typing import Any

from batchgrow.config import ConfigDict
from batchgrow.config.fields import FIELDS
from batchgrow.config.task import TASKS
from batchgrow.models import FILLED as FILLED_BY_LIBRARY
from batchgrow.models import MODELS
from batchgrow.names import defaults, find, flatten
from experiments import cli

_CONFIG = cli.config_flag()
# Arguments of a model or a task that other fields or the library itself give.
FILLED = (*FILLED_BY_LIBRARY, "model")


def main(_: list[str]) -> int:
    """Prints the fields."""
    config = _CONFIG.value
    values = flatten(config.to_dict())
    for field, value in fields_of_classes(config).items():
        values.setdefault(field, value)
    comments = comments_of_classes(config)
    for field in FIELDS:
        choices = f" ({field.kind.description})" if field.kind.choices else ""
        comments.setdefault(field.name, field.meaning + choices)
    declared = [field.name for field in FIELDS if field.name in values]
    names = declared + [name for name in values if name not in declared]
    rows = [(f"--config.{name}={values[name]}", comments.get(name, "")) for name in names]
    width = min(48, max(len(field) for field, _ in rows))
    for field, comment in rows:
        print(f"{field:<{width}}  {comment}".rstrip())
    return 0


def classes_of(config: ConfigDict) -> dict[str, Any]:
    """The classes of the model and of the task by section."""
    known = {"model": MODELS, "task": TASKS}
    named = {section: config[section].name for section in known if config[section].name}
    return {s: find(name, known[s], f"{s}.name") for s, name in named.items()}


def fields_of_classes(config: ConfigDict) -> dict[str, Any]:
    """The arguments of the model and the task with their defaults, as fields of the config."""
    return {
        f"{section}.{name}": getattr(default, "__name__", default)  # the name of a dtype
        for section, made in classes_of(config).items()
        for name, default in defaults(made).items()
        if name not in FILLED
    }


def comments_of_classes(config: ConfigDict) -> dict[str, str]:
    """What the docstrings of the model and the task say about their fields."""
    return {
        f"{section}.{field}": text
        for section, made in classes_of(config).items()
        for field, text in attributes(made).items()
    }


def attributes(made: Any) -> dict[str, str]:
    """The "Attributes" or "Args" of a docstring, each on one line."""
    text = inspect.getdoc(made) or ""
    section = re.search(r"^(?:Attributes|Args):\n((?:  .*\n?|\n)*)", text, re.M)
    entries = re.findall(r"^  (\w[\w, ]*): (.*(?:\n   .*)*)", section[1] if section else "", re.M)
    return {
        name.strip(): " ".join(comment.split())
        for names, comment in entries
        for name in names.split(",")
    }


if __name__ == "__main__":
    cli.run(main)
