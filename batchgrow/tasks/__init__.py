"""A task says what is trained: initial variables, the loss of a batch, and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax

__all__ = ["Batch", "Metric", "Outputs", "Task", "Variables"]

# A pytree of arrays whose leading axis counts examples.
Batch = Any
# The collections of a Flax module: {"params": ..., **model_state}.
Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A number that a task reports for a split.

    Attributes:
      name: as in `Task.summarize`; rows call it `train_<name>` and `test_<name>`.
      better: whether lower or higher values are better.
      percent: whether the report shows it times 100 with a percent sign.
    """

    name: str
    better: Literal["lower", "higher"]
    percent: bool = False


class Outputs(NamedTuple):
    """The result of `Task.loss` for a batch.

    Attributes:
      losses: float32 `(examples,)`. Training minimises their mean.
      model_state: the collections beside "params" after this batch, e.g. "batch_stats".
      metrics: arrays `(examples,)`. The engine sums them over examples and devices.
    """

    losses: jax.Array
    model_state: Mapping[str, Any]
    metrics: dict[str, jax.Array]


class Task(Protocol):
    """What is trained. The engine takes all names of metrics from the task.

    A task may also have `inputs`, the names of the arrays that it reads, each with other names that
    it accepts: (("image", "x"), ("label", "y")). And it may have `check(arrays, split)`, which
    raises a ValueError for a data set in memory that it cannot train on.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that `summarize` returns. The first decides which checkpoint is the best."""
        ...

    def init(self, key: jax.Array, examples: Batch) -> Variables:
        """Returns the initial variables, float32.

        Args:
          key: a typed PRNG key.
          examples: a batch of one example, all zeros.
        """
        ...

    def loss(
        self, variables: Variables, examples: Batch, keys: jax.Array | None, *, train: bool
    ) -> Outputs:
        """Returns the losses of a batch.

        Args:
          variables: "params" and the collections of the model state.
          examples: the batch.
          keys: typed PRNG keys `(examples,)`, each folded from (seed, stream position). None in
            evaluation.
          train: whether to train (dropout, statistics of the batch) or to evaluate.
        """
        ...

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics, "loss" first, from sums over examples.

        Args:
          sums: "count" (the number of examples), "loss", and those of `Outputs.metrics`.
        """
        ...
