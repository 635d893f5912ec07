"""What a field of a config may be: its type, its bounds, and words for messages."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

ConfigDict = Any  # one of ml_collections, whose fields no type checker knows

MOST = 2**53  # The largest whole number up to which all are exact as floats.


@dataclass(frozen=True)
class Kind:
    """The values that a field accepts.

    Attributes:
      type: the type of its value.
      description: the text for messages, such as "a whole number, 1 or more".
      accepts: whether a value is allowed.
      choices: whether the description is a list of words.
      holds_commas: whether a value, as text, may hold commas.
    """

    type: type
    description: str
    accepts: Callable[[Any], bool]
    choices: bool = False
    holds_commas: bool = False


def whole(least: int = 0, most: int = MOST) -> Kind:
    """A whole number."""
    up_to = "" if most == MOST else f" and at most {most}"
    return Kind(
        int,
        f"a whole number, {least} or more{up_to}",
        lambda v: isinstance(v, Integral) and not isinstance(v, bool) and least <= int(v) <= most,
    )


def number(
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    infinite: bool = False,
) -> Kind:
    """A number within bounds; finite unless `infinite`."""
    bounds = {
        "{:g} or more": (least, -math.inf),
        "at most {:g}": (most, math.inf),
        "above {:g}": (above, -math.inf),
        "below {:g}": (below, math.inf),
    }
    words = [text.format(bound) for text, (bound, none) in bounds.items() if bound != none]

    def accepts(value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value):
            return False
        if value == math.inf:
            return infinite
        return least <= float(value) <= most and above < float(value) < below

    first = "a number" if infinite else "a finite number"
    return Kind(float, ", ".join([first, *words]), accepts)


def one_of(*choices: str, own: bool = False) -> Kind:
    """One of these words or, with `own`, `module:name`."""
    words = ", ".join(choices) + (" or module:function" if own else "")
    return Kind(
        str,
        words,
        lambda v: v in choices or (own and isinstance(v, str) and ":" in v),
        choices=True,
    )


def numbers(kind: Kind) -> Kind:
    """A tuple of numbers."""
    return Kind(
        tuple,
        f"a tuple, each entry {kind.description}",
        lambda v: isinstance(v, tuple | list) and all(map(kind.accepts, v)),
        holds_commas=True,
    )


def maybe(kind: Kind) -> Kind:
    """This or None."""
    return replace(
        kind,
        description=f"{kind.description}, or None",
        accepts=lambda v: v is None or kind.accepts(v),
        choices=False,
    )


TEXT = Kind(str, "a text", lambda v: isinstance(v, str))
NAMES = Kind(str, "names with commas between", lambda v: isinstance(v, str), holds_commas=True)
FLAG = Kind(bool, "True or False", lambda v: isinstance(v, bool))
POSITIVE = number(above=0, most=1e30)
NOT_NEGATIVE = number(least=0, most=1e30)
DECAY = number(least=0, below=1)
SHARE = number(least=0, most=1)
