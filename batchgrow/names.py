"""Names in a config: of what the library has, or of anything that can be imported."""

import importlib
from collections.abc import Mapping
from typing import Any


def find(name: str, known: Mapping[str, Any], field: str) -> Any:
    """`known[name]` or, for `module:attribute`, what that module has under this name.

    >>> find("math:sqrt", {}, "task.name")(4)
    2.0

    Args:
      name: as in the config.
      known: what the library has.
      field: of the config, for messages.

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
