"""Transfer: a task that starts from given values, and parameters that training leaves alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from batchgrow.tasks import Batch, Metric, Outputs, Task, Variables


@dataclass(frozen=True, eq=False)
class Transfer:
    """`task` that starts from `start`, and whose gradient is zero for the frozen parameters.

    Frozen layers pass gradients on to the layers before them. Their running statistics of batch
    norm still follow the data.

    Attributes:
      task: what is trained.
      start: initial values by name, such as "params/conv/kernel" (see `by_name`). The task draws
        all others.
      frozen: the names of the frozen parameters.
    """

    task: Task
    start: Mapping[str, Any]
    frozen: frozenset[str] = frozenset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the task."""
        return self.task.metrics

    def init(self, key: jax.Array, examples: Batch) -> Variables:
        """Returns the initial variables of the task, with `start` in place of its own values."""

        def value(path: Any, own: jax.Array) -> jax.Array:
            return jnp.asarray(self.start.get(name_of(path), own))

        variables = dict(self.task.init(key, examples))
        return jax.tree_util.tree_map_with_path(value, variables)

    def loss(
        self, variables: Variables, examples: Batch, keys: jax.Array | None, *, train: bool
    ) -> Outputs:
        """Returns the losses of the task."""

        def value(path: Any, own: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(own) if name_of(path) in self.frozen else own

        variables = jax.tree_util.tree_map_with_path(value, dict(variables))
        return self.task.loss(variables, examples, keys, train=train)

    def is_frozen(self, params: Any) -> Any:
        """Returns, for each parameter, whether it is frozen."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: f"params/{name_of(path)}" in self.frozen, params
        )

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of the task."""
        return self.task.summarize(sums)


def name_of(path: Any) -> str:
    """The name of a leaf: the keys on the way to it, with slashes between."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(variables: Variables) -> dict[str, Any]:
    """The arrays of all collections by name: "params/conv/kernel", "batch_stats/norm/mean"."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {name_of(path): leaf for path, leaf in leaves}


def matching(names: Iterable[str], patterns: str) -> set[str]:
    """The names of the arrays in those layers that match the patterns.

    >>> sorted(matching(["params/conv/kernel", "params/classifier/bias"], "*,!classifier"))
    ['params/conv/kernel']

    Args:
      names: as in `by_name`. A pattern is matched with an array's path in its collection and with
        the paths of the layers that hold it.
      patterns: separated by commas. "*" stands for any text, and "!" leaves out what follows it. Of
        the patterns that match an array, the last one decides.

    Raises:
      ValueError: for a pattern that matches no array.
    """
    names, chosen = list(names), set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        found = {name for name in names if _is_in(name, pattern.removeprefix("!"))}
        if not found:
            keys = [name.split("/") for name in names]
            layers = dict.fromkeys("/".join(key[1:-1] or key[1:]) for key in keys)
            raise ValueError(f"{pattern!r} matches no layer; the layers are {', '.join(layers)}")
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    return chosen


def _is_in(name: str, pattern: str) -> bool:
    keys = name.split("/")[1:]
    return any(fnmatchcase("/".join(keys[:end]), pattern) for end in range(1, len(keys) + 1))
