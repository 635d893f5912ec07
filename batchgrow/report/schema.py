"""What the report needs of each file of a run folder. The files may come from anyone."""

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

MOST = 1e100  # Larger numbers become None, as infinity does: products of them would be infinite.
DIGITS = 18  # of whole numbers; those with more become None


class Kind(NamedTuple):
    """The values that a field may have: in words, and whether it accepts one."""

    words: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return all(v is None or _is_number(v) for v in value)


TEXT = Kind("a text", lambda v: isinstance(v, str))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = Kind("a number, 0 or more", lambda v: _is_number(v) and v >= 0)
WHOLE = Kind("a whole number", _is_whole)
PLACE = Kind("a whole number, 0 or more", lambda v: _is_whole(v) and v >= 0)
COUNT = Kind("a whole number, 1 or more", lambda v: _is_whole(v) and v >= 1)
LIST = Kind("a list that is not empty", lambda v: isinstance(v, list) and len(v) > 0)
SERIES = Kind(
    "a list of numbers, 0 or more",
    lambda v: isinstance(v, list) and all(map(NOT_NEGATIVE.accepts, v)),
)
NUMBERS = Kind("numbers by name", lambda v: isinstance(v, dict) and _numbers(v.values()))
SECONDS = Kind(
    "seconds by name",
    lambda v: isinstance(v, dict) and all(map(NOT_NEGATIVE.accepts, v.values())),
)
TEXTS = Kind("texts by name", lambda v: isinstance(v, dict) and all(map(TEXT.accepts, v.values())))
BETTER = Kind("'lower' or 'higher'", lambda v: v in ("lower", "higher"))

# By dotted name. A field that ends in "?" may be missing or null.
Fields = Mapping[str, Kind]
CONFIG: Fields = {
    "name": TEXT,
    "variant": TEXT,
    "seed": WHOLE,
    "model.name": TEXT,
    "optimizer.name": TEXT,
}
TASK: Fields = {"name": TEXT, "metrics": LIST}
METRIC: Fields = {"name": TEXT, "better": BETTER, "percent": FLAG}
PLAN: Fields = {
    "num_examples": COUNT,
    "num_epochs": POSITIVE,
    "num_updates": COUNT,
    "segments": LIST,
    "noise_scale?": SERIES,
    "diffusion?": SERIES,
}
SEGMENT: Fields = {
    "start_examples": PLACE,
    "end_examples": COUNT,
    "num_updates": COUNT,
    "batch_size": COUNT,
    "learning_rate_start": NUMBER,
    "learning_rate_end": NUMBER,
    "momentum": NUMBER,
    **{
        f"{name}_{end}?": NUMBER
        for name in ("noise_scale", "diffusion")
        for end in ("start", "end")
    },
}
ROW: Fields = {
    "examples_seen": COUNT,
    "updates": COUNT,
    "epoch": NOT_NEGATIVE,
    "batch_size": COUNT,
    "learning_rate": NUMBER,
}
SUMMARY: Fields = {
    "final": NUMBERS,
    "num_updates": COUNT,
    "wall_seconds": NOT_NEGATIVE,
    "seconds": SECONDS,
    "segments": Kind("a list", lambda v: isinstance(v, list)),
    "versions": TEXTS,
    "commit?": TEXT,
    "command?": TEXT,
    "devices.kind": TEXT,
    "devices.platform": TEXT,
    "devices.count": COUNT,
    "devices.processes": COUNT,
}
MEASURED: Fields = {
    "batch_size": COUNT,
    "examples_per_second?": NOT_NEGATIVE,
    "share_of_peak?": NOT_NEGATIVE,
}


def parse(text: str, constants: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The JSON value of a text.

    Numbers that are too large become None, and control characters, which a terminal would obey,
    question marks.

    Args:
      text: the text.
      constants: the values of "Infinity", "-Infinity" and "NaN", by these names. A name that is
        missing has the value None.

    Raises:
      ValueError: if it is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(
            text,
            parse_constant=constants.get,
            parse_float=lambda digits: _known(float(digits)),
            parse_int=lambda digits: int(digits) if len(digits) <= DIGITS else None,
        )
        return _printable(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _known(value: float) -> float | None:
    return value if math.isfinite(value) and abs(value) <= MOST else None


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return value


def check(where: Any, value: Any, fields: Fields) -> None:
    """Checks that a value of JSON is an object with these fields.

    Raises:
      ValueError: that begins with `where`, for the first field that is missing or wrong.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object; restore the file that the run wrote")
    for name, kind in fields.items():
        field, inner = name.removesuffix("?"), value
        for key in field.split("."):
            inner = inner.get(key) if isinstance(inner, dict) else None
        if inner is None and name.endswith("?"):
            continue
        if inner is None:
            raise ValueError(f"{where}: field {field!r} is missing; is this a run folder?")
        if not kind.accepts(inner):
            raise ValueError(
                f"{where}: field {field!r} is {_short(inner)}; it must be {kind.words}; restore "
                "the file that the run wrote"
            )


def check_items(where: Any, items: list[Any], fields: Fields) -> None:
    """Checks every item of a list as `check` does."""
    for index, item in enumerate(items):
        check(f"{where}[{index}]", item, fields)


def check_row(where: Any, row: Any) -> None:
    """Checks a row of metrics.jsonl, which holds numbers only.

    Raises:
      ValueError: as `check`.
    """
    check(where, row, ROW)
    check(where, {"row": row}, {"row": NUMBERS})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
