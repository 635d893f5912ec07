"""A bar over examples on a terminal, plain lines elsewhere, nothing if disabled."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from batchgrow.plan.noise import NOISE_SCALE
from batchgrow.tasks import Metric


class Progress:
    """Shows the progress of a run.

    Args:
      num_examples: the number of examples of the whole run.
      examples_seen: the position at which it starts.
      description: the run's name.
      enabled: False shows nothing.
      metrics: the metrics of the task; rows are shown with their test values.
    """

    def __init__(
        self,
        num_examples: int,
        examples_seen: int,
        description: str,
        enabled: bool,
        metrics: Sequence[Metric],
    ):
        self._description = description
        self._examples_seen = examples_seen  # at the last row
        self._sums = np.zeros(3)  # examples, their losses, seconds: since the last test metrics
        self._num_examples = num_examples
        self._enabled = enabled
        self._metrics = metrics
        self._bar = tqdm(
            total=num_examples,
            initial=examples_seen,
            desc=description,
            unit="ex",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (enabled and sys.stderr.isatty()),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, examples: int) -> None:
        """Moves the bar on."""
        self._bar.update(examples)

    def row(self, row: Mapping[str, Any]) -> None:
        """Shows the newest row; without a terminal only one with test metrics.

        Loss and speed are means since the last row with test metrics. A row may hold a single
        update, such as the first after a growth, and its own loss would look like a spike.
        """
        examples = row["examples_seen"] - self._examples_seen
        self._examples_seen = row["examples_seen"]
        self._sums += (
            examples,
            examples * row["train_loss"],
            examples / row["examples_per_second"],
        )
        count, loss, seconds = self._sums
        facts = {
            "epoch": f"{row['epoch']:.1f}",
            "batch": row["batch_size"],
            "lr": f"{row['learning_rate']:.3g}",
            "loss": f"{loss / count:.3f}",
        }
        if NOISE_SCALE in row:
            facts["noise"] = f"{row[NOISE_SCALE]:.3g}"
        tested = [metric for metric in self._metrics if f"test_{metric.name}" in row]
        for metric in tested:
            value = row[f"test_{metric.name}"]
            facts[f"test_{metric.name}"] = f"{value:.2%}" if metric.percent else f"{value:.4g}"
        if not self._bar.disable:
            self._bar.set_postfix(facts, refresh=False)
        elif tested:
            done = row["examples_seen"] / self._num_examples
            text = "  ".join(f"{name} {value}" for name, value in facts.items())
            self.say(f"{done:4.0%}  {text}  {count / seconds:,.0f} ex/s")
        if tested:
            self._sums = np.zeros(3)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._enabled:
            tqdm.write(f"{self._description}: {text}", file=sys.stderr)
