"""A grid of configs: fields that take several values each. No flags.

Each config of a grid is the one that `--config` with single values makes, by the same parser.
"""

import ast
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchgrow.config.fields import holds_commas
from batchgrow.names import flatten
from experiments import cli

FIELD = re.compile(r"--?config\.([\w.]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """A config of a grid.

    Attributes:
      config: locked.
      folder: its folder below that of the grid: the variant, `FIELD=VALUE` of each field that has
        several values, and the seed.
    """

    config: Any
    folder: str


def cells(
    files: Sequence[str], arguments: Sequence[str], seeds: Sequence[int] | None
) -> Iterator[Cell]:
    """Yields every cell: seeds outermost, so that all plans have as many; then files, then fields.

    Args:
      files: `configs/NAME.py:VARIANT`, one or several.
      arguments: `--config.FIELD=VALUE` or `--config.FIELD=VALUE,VALUE,...` (see `values_of`).
      seeds: the seeds; None if `--config.seed` is among the arguments.

    Raises:
      ValueError: for a field or a value that is wrong, or two cells of one folder.
    """
    fields = fields_of(arguments, cli.config_of(files[0]))
    if seeds is not None:
        fields = {"seed": [str(seed) for seed in seeds]} | fields
    flags = {name: [f"--config.{name}={value}" for value in fields[name]] for name in fields}
    others = [argument for argument in arguments if not FIELD.fullmatch(argument)]
    swept = [name for name in fields if name != "seed" and len(fields[name]) > 1]
    seen = set()
    for seed in flags.pop("seed"):
        for file, *chosen in itertools.product(files, *flags.values()):
            config = cli.config_of(file, [*others, *chosen, seed])
            values = flatten(config.to_dict())
            names = [config.variant, *(f"{name}={_shown(values[name])}" for name in swept)]
            folder = os.path.join(*filter(None, [_checked(n) for n in names]), str(config.seed))
            if folder in seen:
                raise ValueError(f"two cells of the grid are {folder}; give each value once")
            seen.add(folder)
            yield Cell(config.lock(), folder)


def fields_of(arguments: Sequence[str], config: Any) -> dict[str, list[str]]:
    """Returns field -> its values, as texts, in the order of the arguments.

    Args:
      arguments: those that are not `--config.FIELD=VALUE` are left out.
      config: tells the types of fields that are not declared.

    Raises:
      ValueError: for a field that is given twice, or has an empty value.
    """
    known = flatten(config.to_dict())
    fields: dict[str, list[str]] = {}
    for argument in arguments:
        if match := FIELD.fullmatch(argument):
            name, text = match.groups()
            if name in fields:
                raise ValueError(f"--config.{name} is given twice; write its values with commas")
            fields[name] = values_of(name, text, known.get(name))
    return fields


def values_of(name: str, text: str, default: Any = None) -> list[str]:
    """Splits the values of a field at commas.

    Commas within parentheses, brackets and quotes are part of a value. The value of some fields
    holds commas, such as a tuple's. Several values of these are each in parentheses or quotes:
    `(3,6),(4,8)`; without them, `3,6` is one value.

    >>> values_of("recipe.learning_rate", "0.1,0.2")
    ['0.1', '0.2']
    >>> values_of("recipe.boundaries_epochs", "3,6"), values_of("recipe.factor", "None")
    (['3,6'], ['None'])
    >>> values_of("recipe.boundaries_epochs", "(3,6),(4,8)")
    ['(3,6)', '(4,8)']
    >>> values_of("data.columns", "'img,label','img,coarse'")
    ['img,label', 'img,coarse']

    Args:
      name: the field.
      text: what follows the equals sign.
      default: the value in the config, which tells the type of a field that is not declared.

    Raises:
      ValueError: if a value is empty.
    """
    pieces = [piece.strip() for piece in _split(text)]
    if holds_commas(name, default) and not all(_is_enclosed(piece) for piece in pieces):
        return [text]
    if len(pieces) > 1 and not all(pieces):
        raise ValueError(f"--config.{name}={text}: a value is empty; remove a comma")
    return [_unquoted(piece) for piece in pieces] if len(pieces) > 1 else [text]


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and not quote and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def _is_enclosed(piece: str) -> bool:
    return piece[:1] + piece[-1:] in ("()", "[]", "''", '""') and len(piece) > 1


def _unquoted(piece: str) -> str:
    quoted = piece[:1] in ("'", '"') and _is_enclosed(piece)
    return str(ast.literal_eval(piece)) if quoted else piece


def _shown(value: Any) -> str:
    """A value for the name of a folder."""
    return "".join(str(tuple(value) if isinstance(value, list) else value).split())


def _checked(name: str) -> str:
    if name in (".", "..") or os.sep in name:
        raise ValueError(
            f"{name!r} cannot name the folder of a cell; use a variant and values without {os.sep}"
        )
    return name


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Sets fields of a config by their dotted names, and returns it.

    Raises:
      ValueError: for a field that the config does not have.
    """
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        target = config[section] if section else config
        if field not in target and section != "model":  # a model has fields with defaults
            raise ValueError(f"{name}: no such config field")
        with target.ignore_type(), target.unlocked():
            target[field] = value
    return config
