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

    Attributes:
      model: called as `model(x, train=...)`; returns z, `(examples, outputs)`.
      mean: the approximate mean of y in the training set.
      std: its approximate standard deviation. Both bring z to the scale of one.
    """

    model: nn.Module
    mean: float = 0.0
    std: float = 1.0

    inputs = (("x",), ("y",))
    metrics = (
        Metric("loss", "lower"),
        Metric("rmse", "lower"),
        Metric("r2", "higher"),
    )

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
          ValueError: if the model's outputs have another shape than y.
        """
        outputs, model_state = apply(self.model, variables, examples["x"], keys, train=train)
        z = (examples["y"].astype(jnp.float32) - self.mean) / self.std
        if outputs.shape != z.shape:
            raise ValueError(
                f"the model's outputs are {outputs.shape} and y is {z.shape}: set model.outputs "
                "to the number of values in an example's y"
            )
        losses = jnp.square(outputs.astype(jnp.float32) - z).mean(1)
        metrics = {f"z_{output}": z[:, output] for output in range(z.shape[1])}
        return Outputs(losses, model_state, metrics | {"z_squared": jnp.square(z).sum(1)})

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the loss, the root mean squared error in units of y, and R^2.

        With n examples and D outputs, R^2 = 1 - (D sum of losses) / (sum of z^2 - sum over the
        outputs of (sum of z)^2 / n): the share of the variance of y over all outputs that the model
        explains. It is NaN if y does not vary.
        """
        count, loss = sums["count"], sums["loss"] / sums["count"]
        totals = [total for name, total in sums.items() if name.removeprefix("z_").isdigit()]
        variation = sums["z_squared"] - sum(total**2 for total in totals) / count
        explained = 1 - len(totals) * sums["loss"] / variation if variation > 0 else math.nan
        return {"loss": loss, "rmse": self.std * math.sqrt(loss), "r2": explained}
