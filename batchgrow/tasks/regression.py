"""Regression: predict numbers from a table or a series."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from batchgrow.models.dropout import apply
from batchgrow.tasks import Metric, Outputs, Variables


@dataclass(frozen=True)
class Regression:
    """Trains `model` to predict y from x, with squared errors.

    Examples are {"x": float `(examples, ...)`, "y": float `(examples, outputs)`}; an x may be a row
    of a table or a series `(time, channels)`. The model predicts z = (y - mean) / std. The loss of
    an example is the squared error of z, averaged over the outputs.

    A model may return a pair: z, and auxiliary predictions of z. Training then adds the mean
    squared error of the auxiliary predictions, times `auxiliary_weight`, to the loss.

    Attributes:
      model: called as `model(x, train=...)`; returns z, `(examples, outputs)`, alone or with
        auxiliary predictions `(examples, predictions, outputs)`.
      mean: the approximate mean of y in the training set.
      std: its approximate standard deviation. Both bring z to the scale of one.
      auxiliary_weight: the weight of the auxiliary loss in training, 0 or more.

    Raises:
      ValueError: for a weight below 0.
    """

    model: nn.Module
    mean: float = 0.0
    std: float = 1.0
    auxiliary_weight: float = 0.0

    inputs = (("x",), ("y",))
    metrics = (
        Metric("loss", "lower"),
        Metric("rmse", "lower"),
        Metric("r2", "higher"),
    )

    def __post_init__(self) -> None:
        if not self.auxiliary_weight >= 0:
            raise ValueError(f"task.auxiliary_weight {self.auxiliary_weight} must be 0 or more")

    def init(self, key: jax.Array, examples: Mapping[str, jax.Array]) -> Variables:
        """Returns the initial variables of the model."""
        return self.model.init(key, examples["x"], train=False)

    def loss(
        self,
        variables: Variables,
        examples: Mapping[str, jax.Array],
        keys: jax.Array | None,
        *,
        train: bool,
    ) -> Outputs:
        """Returns the mean squared error of each example, and what `summarize` sums up.

        Raises:
          ValueError: if the model's outputs have another shape than y, or there are no auxiliary
            predictions for their weight.
        """
        outputs, model_state = apply(self.model, variables, examples["x"], keys, train=train)
        outputs, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, None)
        z = (examples["y"].astype(jnp.float32) - self.mean) / self.std
        if outputs.shape != z.shape:
            raise ValueError(
                f"the model's outputs are {outputs.shape} and y is {z.shape}: set model.outputs "
                "to the number of values in an example's y"
            )
        losses = jnp.square(outputs.astype(jnp.float32) - z).mean(1)
        metrics = {f"z_{output}": z[:, output] for output in range(z.shape[1])}
        metrics |= {"z_squared": jnp.square(z).sum(1)}
        if self.auxiliary_weight:
            if auxiliary is None:
                raise ValueError(
                    f"task.auxiliary_weight is {self.auxiliary_weight}, but the model returns no "
                    "auxiliary predictions; set it to 0"
                )
            metrics |= {"squared_error": losses}
            if train:
                errors = jnp.square(auxiliary.astype(jnp.float32) - z[:, None]).mean((1, 2))
                losses = losses + self.auxiliary_weight * errors
        return Outputs(losses, model_state, metrics)

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the loss, the root mean squared error in units of y, and R^2.

        With n examples, D outputs and squared errors e, R^2 = 1 - (D sum of e) / (sum of z^2 - sum
        over the outputs of (sum of z)^2 / n): the share of the variance of y over all outputs that
        the model explains. It is NaN if y does not vary. The auxiliary loss is part of the loss in
        training only.
        """
        count, error = sums["count"], sums.get("squared_error", sums["loss"])
        totals = [total for name, total in sums.items() if name.removeprefix("z_").isdigit()]
        variation = sums["z_squared"] - sum(total**2 for total in totals) / count
        explained = 1 - len(totals) * error / variation if variation > 0 else math.nan
        rmse = self.std * math.sqrt(error / count)
        return {"loss": sums["loss"] / count, "rmse": rmse, "r2": explained}
