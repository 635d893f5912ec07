"""All fields of a config: their values and what they mean.

    python -m experiments.fields --config=configs/digits.py:hybrid

What a field means stands in batchgrow/config/fields.py, or in the docstring of the model or task.
"""

import inspect
import re
from typing import Any

from batchgrow.config import ConfigDict
from batchgrow.config.fields import FIELDS
from batchgrow.config.task import TASKS
from batchgrow.models import MODELS
from batchgrow.names import find
from experiments import cli

_CONFIG = cli.config_flag()


def main(_: list[str]) -> int:
    """Prints the fields."""
    config = _CONFIG.value
    comments = {field.name: field.meaning for field in FIELDS} | comments_of_classes(config)
    rows = [(f"--config.{name}={value}", comments.get(name, "")) for name, value in flat(config)]
    width = min(48, max(len(field) for field, _ in rows))
    for field, comment in rows:
        print(f"{field:<{width}}  {comment}".rstrip())
    return 0


def flat(config: ConfigDict, prefix: str = "") -> list[tuple[str, Any]]:
    """The dotted names and values of all fields."""
    found = []
    for name in config:
        value = config[name]
        if hasattr(value, "to_dict"):
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


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
