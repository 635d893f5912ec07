"""Plans to and from tables, and in the forms of other trainers.

A table has a row for each run of updates that have the same batch size and learning rate, so it
holds a plan exactly. For Megatron-LM see `batchgrow.to_megatron`, which takes `stages(plan)`.
"""

import csv
import io
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from batchgrow.plan.curves import Curve
from batchgrow.plan.plan import FixedPlan, Segment
from batchgrow.plan.recipe import Recipe, check_whole


class Row(NamedTuple):
    """Updates with the same batch size and learning rate, one after another.

    Attributes:
      segment: index of the segment that they belong to.
      start_examples: examples seen before the first of them.
      num_updates: at least 1.
      batch_size: B, the batch size of each.
      learning_rate: the learning rate of each.
      momentum: m, or b1 for Adam.
    """

    segment: int
    start_examples: int
    num_updates: int
    batch_size: int
    learning_rate: float
    momentum: float


def to_rows(plan: FixedPlan) -> list[Row]:
    """Returns the plan as rows."""
    rows = []
    for index, segment in enumerate(plan.segments):
        position = segment.start_examples
        momenta = (plan.momentum_of(segment, n) for n in range(segment.num_updates))
        pairs = zip(plan.learning_rates(segment).tolist(), momenta, strict=True)
        for (rate, momentum), updates in groupby(pairs):
            count = len(list(updates))
            rows.append(Row(index, position, count, segment.batch_size, rate, momentum))
            position += count * segment.batch_size
    return rows


def from_rows(rows: Sequence[Row], num_examples: int, optimizer: str = "momentum") -> FixedPlan:
    """Returns the plan of the rows, with the same updates bit for bit.

    Its recipe has the learning rates of the rows as its curve, and the plan keeps them whatever the
    batch size is (`exponent` 0).

    Args:
      rows: in order, from example 0 on.
      num_examples: N, the size of the training set.
      optimizer: that of the recipe.

    Raises:
      ValueError: if a row does not start where the one before it ends, the momentum changes,
        num_examples is below 1, or the optimizer is unknown.
    """
    check_whole("num_examples", num_examples)
    segments: list[Segment] = []
    position = 0
    for number, row in enumerate(rows, start=1):
        if row.start_examples != position:
            raise ValueError(
                f"row {number} starts at example {row.start_examples}, but the rows before it end "
                f"at {position}: give the rows of a whole plan, in order"
            )
        if row.momentum != rows[0].momentum:
            raise ValueError(
                f"row {number} has momentum={row.momentum}, but row 1 has {rows[0].momentum}: a "
                "table must have one momentum"
            )
        if row.num_updates < 1 or row.batch_size < 1:
            raise ValueError(
                f"row {number} has num_updates={row.num_updates} and batch_size={row.batch_size}: "
                "both must be 1 or more"
            )
        last = rows[number - 2] if number > 1 else None
        if last and (last.segment, last.batch_size) == (row.segment, row.batch_size):
            num_updates = segments[-1].num_updates + row.num_updates
            segments[-1] = segments[-1]._replace(num_updates=num_updates)
        else:
            new = Segment(position, row.num_updates, row.batch_size, row.momentum, position)
            segments.append(new)
        position = position + row.num_updates * row.batch_size
    if not rows:
        raise ValueError("the table has no rows")
    curve = _lookup(rows, num_examples)
    num_epochs = position / num_examples
    first = rows[0]
    recipe = Recipe(first.batch_size, first.momentum, curve, num_examples, num_epochs, optimizer)
    return FixedPlan(recipe, tuple(segments), exponent=0.0)


def _lookup(rows: Sequence[Row], num_examples: int) -> Curve:
    """Returns the learning rates of the rows as a curve."""
    epochs = [row.start_examples / num_examples for row in rows]
    rates = [row.learning_rate for row in rows]

    def on_array(at: np.ndarray) -> np.ndarray:
        return np.array(rates)[np.searchsorted(epochs, at, side="right") - 1]

    return Curve(lambda at: rates[bisect_right(epochs, at) - 1], tuple(epochs[1:]), on_array)


def to_csv(plan: FixedPlan) -> str:
    """Returns the table as CSV. `num_examples` and `optimizer` are the same in each row.

    >>> from batchgrow import Recipe, curves, grow
    >>> recipe = Recipe(4, 0.9, curves.step(0.1, (1,), 0.5), num_examples=8, num_epochs=2)
    >>> print(to_csv(grow(recipe, max_batch_size=8)), end="")
    segment,start_examples,num_updates,batch_size,learning_rate,momentum,num_examples,optimizer
    0,0,2,4,0.1,0.9,8,momentum
    1,8,1,8,0.1,0.9,8,momentum
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = _facts(plan)
    writer.writerow([*Row._fields, *facts])
    writer.writerows([*row, *facts.values()] for row in to_rows(plan))
    return text.getvalue()


def to_json(plan: FixedPlan) -> str:
    """Returns the table as JSON.

    It is {"num_examples": N, "optimizer": NAME, "rows": [{"segment": 0, ...}, ...]}.
    """
    rows = [row._asdict() for row in to_rows(plan)]
    return json.dumps(_facts(plan) | {"rows": rows}, indent=2) + "\n"


def _facts(plan: FixedPlan) -> dict[str, Any]:
    """What a table says of the whole plan."""
    return {"num_examples": plan.recipe.num_examples, "optimizer": plan.recipe.optimizer}


def from_text(text: str) -> FixedPlan:
    """Returns the plan of a CSV or JSON table. Without an optimizer it is for "momentum".

    Raises:
      ValueError: if the text is neither, or as `from_rows`.
    """
    try:
        if text.lstrip().startswith("{"):
            facts = json.loads(text)
            found = facts["rows"]
        else:
            found = list(csv.DictReader(io.StringIO(text)))
            facts = found[0] if found else {"num_examples": 1}
            for name in ("num_examples", "optimizer"):
                if any(row.get(name) != facts.get(name) for row in found):
                    raise ValueError(f"{name} differs between rows")
        num_examples, optimizer = int(facts["num_examples"]), facts.get("optimizer", "momentum")
        rows = [_row(row) for row in found]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"not the table of a plan ({reason}): a CSV table has the columns "
            f"{','.join(Row._fields)},num_examples, and JSON has num_examples and rows"
        ) from error
    return from_rows(rows, num_examples, str(optimizer))


def _row(values: Mapping[str, Any]) -> Row:
    return Row(*(kind(values[name]) for name, kind in Row.__annotations__.items()))


def stages(plan: FixedPlan) -> tuple[tuple[int, int], ...]:
    """Returns (first example, batch size) from each example on at which the batch size changes.

    >>> from batchgrow import Recipe, curves, grow
    >>> recipe = Recipe(4, 0.9, curves.step(0.1, (1,), 0.5), num_examples=8, num_epochs=2)
    >>> stages(grow(recipe, max_batch_size=8))
    ((0, 4), (8, 8))
    """
    found: list[tuple[int, int]] = []
    for segment in plan.segments:
        if not found or found[-1][1] != segment.batch_size:
            found.append((segment.start_examples, segment.batch_size))
    return tuple(found)


def to_olmo_core(plan: FixedPlan, tokens_per_example: int) -> dict[str, list[Any]]:
    """Returns the arguments of OLMo-core's `BatchSizeSchedulerCallback`, which count tokens.

    Two things differ there. A batch grows only after a number of batches that the factor divides,
    so up to factor - 1 updates later. At each change the callback multiplies the base learning rate
    by the square root of the factor, which is the rule of plans for Adam (`exponent` 1/2).

    >>> from batchgrow import Recipe, curves, grow
    >>> recipe = Recipe(4, 0.9, curves.step(0.1, (1,), 0.5), num_examples=8, num_epochs=2)
    >>> to_olmo_core(grow(recipe, max_batch_size=8), tokens_per_example=100)["batch_sizes"]
    [400, 800]

    Raises:
      ValueError: if a batch size is not a multiple of the one before it, or a divisor.
    """
    changes = stages(plan)
    for (_, before), (_, after) in zip(changes, changes[1:], strict=False):
        if max(before, after) % min(before, after):
            raise ValueError(
                f"OLMo-core changes a batch size by whole factors only, not from {before} to "
                f"{after}: make the plan with other batch sizes"
            )
    return {
        "batch_sizes": [batch_size * tokens_per_example for _, batch_size in changes],
        "schedule": [
            {"value": position * tokens_per_example, "unit": "tokens"} for position, _ in changes
        ],
    }
