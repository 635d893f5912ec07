"""Keras 3: a data set in the batches of a plan, and a callback that sets the learning rate.

    data = PlanDataset(plan, (inputs, targets), seed=0)
    model.fit(data, epochs=1, callbacks=[PlanCallback(plan)])

One call of `fit` with one epoch is the whole run, which the callback ends. A batch must fit into
memory: Keras cannot change the number of accumulated batches during a run.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from batchgrow.batches import PlanBatches
from batchgrow.data.stream import Stream
from batchgrow.plan.plan import FixedPlan

READ_AHEAD = 16  # Backends ask for a few batches that they do not train on.


class PlanDataset(keras.utils.PyDataset):
    """The batches of a plan: item i is the batch of update i after `examples_seen`.

    `num_batches` is None, for "unknown", because `fit` shuffles the batches of a data set of known
    length. So `PlanCallback` must end the run.

    Args:
      plan: gives the batch size of each update.
      source: an array or a tuple of arrays whose first axis counts examples, or a function that
        takes indices, int64 of shape (n,), and returns a batch. With a function, `num_examples` is
        needed.
      seed: determines the order of the examples, which is that of the JAX engine.
      examples_seen: where to begin, to resume.
      num_examples: size of the data set behind a function.

    Raises:
      TypeError, ValueError: as `batchgrow.batches.PlanBatches`.
    """

    def __init__(
        self,
        plan: FixedPlan,
        source: Any | tuple[Any, ...] | Callable[[np.ndarray], Any],
        *,
        seed: int = 0,
        examples_seen: int = 0,
        num_examples: int | None = None,
    ) -> None:
        # With more workers Keras 3.15 loses the batch with which it builds the model.
        super().__init__(workers=1)
        if num_examples is None:
            if callable(source):
                raise ValueError("num_examples is missing: set it to the size of the data set")
            num_examples = len(source[0] if isinstance(source, tuple) else source)
        self._source = source
        self._batches = PlanBatches(plan, Stream(num_examples, seed), examples_seen=examples_seen)

    def __len__(self) -> int:
        """The number of updates."""
        return len(self._batches)

    @property
    def num_batches(self) -> None:
        """None, so that `fit` does not shuffle."""

    def __getitem__(self, index: int) -> Any:
        if index > len(self) + READ_AHEAD:
            raise IndexError(
                f"the plan has {len(self)} updates left, but fit asks for batch {index}: give fit "
                "the PlanCallback, which ends the run"
            )
        # Batches that are read beyond the end are not trained on.
        plan, left = self._batches.plan, len(self)
        point = plan.point(plan.num_updates - max(1, left - index))
        indices = self._batches.stream.indices(point.positions)
        if callable(self._source):
            return self._source(indices)
        if isinstance(self._source, tuple):
            return tuple(array[indices] for array in self._source)
        return self._source[indices]


class PlanCallback(keras.callbacks.Callback):
    """Sets the learning rate of each update, and ends the run. Keras holds the rate in float32.

    Args:
      plan: the learning rates.
      examples_seen: where the run begins, to resume.

    Attributes:
      examples_seen: examples that the updates so far have seen. Save it with the model.

    Raises:
      ValueError: at the start of training, if the run is complete, the momentum of the optimizer is
        not that of the plan, or an update of the optimizer is not one batch.
    """

    def __init__(self, plan: FixedPlan, examples_seen: int = 0) -> None:
        super().__init__()
        self.examples_seen = examples_seen
        self._plan = plan
        next(plan.points(examples_seen), None)  # Raises unless an update starts there.

    def on_train_begin(self, logs: Any = None) -> None:
        model: Any = self.model
        if self.examples_seen == self._plan.end_examples:
            raise ValueError(
                f"the run is complete, with all {self.examples_seen:,} examples of its plan: do "
                "not call fit, which makes an update in every call"
            )
        if self._plan.momentum_curve is not None:
            raise ValueError(
                "the momentum of the plan changes, and Keras has one momentum: use "
                "a plan with a constant momentum"
            )
        momenta = {segment.momentum for segment in self._plan.segments}
        name = "beta_1" if hasattr(model.optimizer, "beta_1") else "momentum"
        found = getattr(model.optimizer, name, None)
        if found is not None and momenta != {found}:
            raise ValueError(
                f"the optimizer has {name}={found}, but the plan has "
                f"{', '.join(map(str, sorted(momenta)))}: give both the same momentum"
            )
        for name, value in (
            ("gradient_accumulation_steps", model.optimizer.gradient_accumulation_steps or 1),
            ("steps_per_execution", model.steps_per_execution),
        ):
            if value != 1:
                raise ValueError(f"{name}={value} must be 1: each batch is an update of the plan")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        optimizer: Any = self.model.optimizer  # pyright: ignore
        optimizer.learning_rate = self._plan.at(self.examples_seen).learning_rate

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.examples_seen = self._plan.at(self.examples_seen).end_examples
        if self.examples_seen == self._plan.end_examples:
            self.model.stop_training = True  # pyright: ignore
