"""Tasks: what a model is trained for, and the metrics by which it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A number that measures a model.

    Attributes:
      name: as in `Task.summarize`; rows have it as `train_NAME` and `test_NAME`.
      better: whether lower or higher values are better.
      percent: whether to show it as a percentage; its value is a fraction.
    """

    name: str
    better: Literal["lower", "higher"]
    percent: bool = False


class Outputs(NamedTuple):
    """What `Task.loss` returns for a batch.

    Attributes:
      losses: float32 of shape (examples,); training minimises their mean.
      model_state: the collections beside "params" after this batch, such as "batch_stats".
      metrics: arrays of shape (examples,), which are summed over examples and devices.
    """

    losses: jax.Array
    model_state: Mapping[str, Any]
    metrics: dict[str, jax.Array]


class Task(Protocol):
    """What to train: a model, its loss and its metrics.

    Attributes:
      metrics: what `summarize` returns; the first decides which checkpoint is the best.
    """

    metrics: tuple[Metric, ...]

    def init(self, key: jax.Array, examples: Any) -> Variables:
        """Returns the variables `{"params": ..., **model_state}`.

        Args:
          key: a typed PRNG key.
          examples: a batch of one example, zeros.
        """
        ...

    def loss(
        self, variables: Variables, examples: Any, keys: jax.Array | None, *, train: bool
    ) -> Outputs:
        """Returns the loss and the metrics of each example.

        Args:
          variables: as `init` returns them.
          examples: a pytree of arrays of shape (examples, ...).
          keys: typed PRNG keys of shape (examples,), folded from the seed and the stream
            position; None in evaluation.
          train: whether this is a training step.
        """
        ...

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics, "loss" first.

        Args:
          sums: over examples: "count", "loss", and those of `Outputs.metrics`.
        """
        ...
