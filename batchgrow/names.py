"""Names in a config: the dotted names of its fields, and the objects that it names."""

import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
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
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{field} {name!r} cannot be imported ({error})") from error


def parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """The keyword arguments that `function` takes, and whether it needs them; {} if unknown."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default is p.empty for p in _parameters(function) if p.kind in kinds}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that `function` takes, and their defaults; None where there is none."""
    needed = parameters(function)
    found = {p.name: p.default for p in _parameters(function) if p.name in needed}
    return {name: None if needed[name] else default for name, default in found.items()}


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether `function` has **keyword arguments."""
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(function))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    called = _called(function)
    try:
        found = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return []
    return found if called is function else found[1:]


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` or, for a class, its `__init__`, which a metaclass such as that of NNX hides."""
    is_class = isinstance(function, type) and function.__init__ is not object.__init__
    return function.__init__ if is_class else function


def check_types(function: Callable[..., Any], fields: Mapping[str, Any], section: str) -> None:
    """Checks fields against the annotations of the arguments of `function`.

    Numbers, texts, None, sequences and unions of them are checked; other annotations accept all.

    >>> def net(width: int, rates: Sequence[float] = ()): ...
    >>> check_types(net, {"width": 4, "rates": (1, 0.5)}, "model")
    >>> check_types(net, {"rates": 0.5}, "model")
    Traceback (most recent call last):
    ValueError: model.rates is 0.5; it must be Sequence[float], such as (0.5,)

    Args:
      function: a function or a class.
      fields: arguments by name.
      section: the section of the config that has the fields, for messages.

    Raises:
      ValueError: for the first value that its annotation does not allow.
    """
    try:
        annotations = typing.get_type_hints(_called(function))
    except Exception:  # an annotation names something that cannot be imported
        return
    for name, value in fields.items():
        kind = annotations.get(name, Any)
        if not _fits(value, kind):
            words = kind.__name__ if isinstance(kind, type) else str(kind)
            words = re.sub(r"\b[a-z_]+(\.[a-z_]+)*\.(?=[A-Z])", "", words)
            example = f", such as {(value,)}" if _fits((value,), kind) else ""
            raise ValueError(f"{section}.{name} is {value!r}; it must be {words}{example}")


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if kind in (None, type(None)):
        return value is None
    if kind is bool or (kind in (int, float) and isinstance(value, bool)):
        return kind is bool and isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real)
    if kind is str:
        return isinstance(value, str)
    if (origin or kind) in (Sequence, tuple, list):
        if not isinstance(value, tuple | list):
            return False
        entries = [entry for entry in inner if entry is not Ellipsis]
        if origin is tuple and Ellipsis not in inner and entries:
            return len(value) == len(entries) and all(map(_fits, value, entries))
        return all(_fits(entry, entries[0]) for entry in value) if entries else True
    return True


def call(function: Callable[..., Any], fields: Mapping[str, Any], field: str) -> Any:
    """Calls `function` with the fields that it takes.

    >>> call(lambda rate, *, b2: (rate, b2), {"rate": 0.1, "b2": 0.9, "b3": 0.8}, "optimizer")
    (0.1, 0.9)

    Args:
      function: a function of the user.
      fields: fields of the config. Those that are None keep the function's own defaults.
      field: the name of the field in the config, for messages.

    Raises:
      ValueError: if the function needs an argument that is not a field or has no name, or a field
        has a type that its annotation does not allow.
    """
    nameless = [p.name for p in _parameters(function) if p.kind is p.POSITIONAL_ONLY]
    if nameless:
        raise ValueError(
            f"{field} takes {', '.join(nameless)} by position, so no field can give it; name a "
            "function of your own that calls it"
        )
    takes, given = parameters(function), {k: v for k, v in fields.items() if v is not None}
    missing = [name for name, is_needed in takes.items() if is_needed and name not in given]
    if missing:
        raise ValueError(
            f"{field} needs {', '.join(missing)}; add a field of this name to the config, or a "
            f"default value (the config has {', '.join(given)})"
        )
    arguments = {name: given[name] for name in takes if name in given}
    check_types(function, arguments, field.partition(".")[0])
    return function(**arguments)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name.

    >>> flatten({"seed": 0, "run": {"num_devices": 4}})
    {'seed': 0, 'run.num_devices': 4}
    """
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def hint(name: str, known: Iterable[str]) -> str:
    """Returns what an error adds about an unknown field: the nearest one, or those beside it.

    >>> fields = ("recipe.learning_rate", "recipe.momentum", "run.num_devices")
    >>> hint("recipe.lerning_rate", fields), hint("recipe.lr", fields)
    ("; the nearest is 'recipe.learning_rate'", "; the nearest is 'recipe.learning_rate'")
    >>> hint("plan.momentum", fields), hint("run.speed", fields)
    ("; the nearest is 'recipe.momentum'", '; there are num_devices')

    Args:
      name: the dotted name of no field.
      known: the dotted names of all fields.
    """
    split = {field: field.rpartition(".")[::2] for field in known}
    section, last = name.rpartition(".")[::2]
    sections = [*dict.fromkeys(other for other, _ in split.values())]
    if section not in sections:
        section = next(iter(difflib.get_close_matches(section, sections, n=1)), section)
    beside = {own: field for field, (other, own) in split.items() if other == section}
    near = [beside[last]] if last in beside else []
    near += [field for own, field in beside.items() if _initials(own) == last]
    near += [field for field, (_, own) in split.items() if own == last]
    near += [beside[own] for own in difflib.get_close_matches(last, beside, n=1)]
    if near:
        return f"; the nearest is {near[0]!r}"
    others = [*beside, *(() if section and beside else filter(None, sections))]
    return f"; there are {', '.join(sorted(others))}" if others else ""


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
