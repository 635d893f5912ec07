"""All fields of a config: their values and what they mean.

    python -m experiments.fields --config=configs/digits.py:hybrid

The comments are those of configs/base.py, and of the docstrings of the model and the task.
"""

import inspect
import pathlib
import re
from typing import Any

from batchgrow.config import ConfigDict
from batchgrow.config.task import TASKS
from batchgrow.models import MODELS
from batchgrow.names import find
from configs import base
from experiments import cli

_CONFIG = cli.config_flag()

# A field of base.py, `    recipe.power = 1.0  # comment` or `    plan = config.plan = ...`.
FIELD = re.compile(r"    (?:\w+ = )?([\w.]+) = [^#]*?(?:  # (.*))?$")


def main(_: list[str]) -> int:
    """Prints the fields."""
    config = _CONFIG.value
    comments = comments_of_base() | comments_of_classes(config)
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


def comments_of_base() -> dict[str, str]:
    """The comment of each field in configs/base.py; one on the line before counts too."""
    comments, before = {}, ""
    for line in pathlib.Path(base.__file__).read_text(encoding="utf-8").splitlines():
        match = FIELD.match(line)
        if match:
            comments[match[1].removeprefix("config.")] = match[2] or before
        before = line.strip()[2:] if line.strip().startswith("# ") else ""
    return comments


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
