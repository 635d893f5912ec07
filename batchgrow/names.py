"""Looks up names in a config: names of the library, or anything that can be imported."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def find(name: str, known: Mapping[str, Any], field: str) -> Any:
    """Returns `known[name]` or, for `module:attribute`, that attribute of the module.

    >>> find("math:sqrt", {}, "task.name")(4)
    2.0

    Args:
      name: the name in the config.
      known: the objects of the library by name.
      field: the name of the field in the config, for messages.

    Raises:
      ValueError: if there is no such name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name in known:
            return known[name]
        raise ValueError(
            f"unknown {field} {name!r}; choose {', '.join(known)} or module:attribute of your own"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{field} {name!r} cannot be imported ({error})") from error


def parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """The keyword arguments that `function` takes, and whether it needs them; {} if unknown."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default is p.empty for p in _parameters(function) if p.kind in kinds}


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether `function` has **keyword arguments."""
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(function))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    # A metaclass, such as that of NNX, hides the arguments of __init__.
    is_class = isinstance(function, type) and function.__init__ is not object.__init__
    try:
        found = inspect.signature(function.__init__ if is_class else function).parameters.values()
    except (TypeError, ValueError):
        return []
    return list(found)[1:] if is_class else list(found)


def call(function: Callable[..., Any], fields: Mapping[str, Any], field: str) -> Any:
    """Calls `function` with the fields that it takes.

    >>> call(lambda rate, *, b2: (rate, b2), {"rate": 0.1, "b2": 0.9, "b3": 0.8}, "optimizer")
    (0.1, 0.9)

    Args:
      function: a function of the user.
      fields: fields of the config. Those that are None keep the function's own defaults.
      field: the name of the field in the config, for messages.

    Raises:
      ValueError: if the function needs an argument that is not a field.
    """
    takes, given = parameters(function), {k: v for k, v in fields.items() if v is not None}
    missing = [name for name, is_needed in takes.items() if is_needed and name not in given]
    if missing:
        raise ValueError(
            f"{field} needs {', '.join(missing)}; add a field of this name to the config, or a "
            f"default value (the config has {', '.join(given)})"
        )
    return function(**{name: given[name] for name in takes if name in given})
