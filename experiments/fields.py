"""All fields of a config: their values and what they mean.

    python -m experiments.fields --config=configs/digits.py:hybrid

The meanings are from batchgrow/config/fields.py and from the docstrings of the model and the task.
"""

import inspect
import re
from typing import Any

from batchgrow.config import ConfigDict
from batchgrow.config.fields import FIELDS
from batchgrow.config.task import TASKS
from batchgrow.models import MODELS
from batchgrow.names import find
from batchgrow.run.folder import flatten
from experiments import cli

_CONFIG = cli.config_flag()


def main(_: list[str]) -> int:
    """Prints the fields."""
    config = _CONFIG.value
    values = flatten(config.to_dict())
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


def comments_of_classes(config: ConfigDict) -> dict[str, str]:
    """What the docstrings of the model and the task say about their fields."""
    comments = {}
    for section, known in {"model": MODELS, "task": TASKS}.items():
        name = config[section].name
        if name:
            comments |= {
                f"{section}.{field}": text
                for field, text in attributes(find(name, known, f"{section}.name")).items()
            }
    return comments


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
