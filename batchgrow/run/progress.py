"""A bar over examples on a terminal, plain lines elsewhere, and nothing on other processes."""

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows how far a run is.

    Args:
      num_examples: of the whole run.
      examples_seen: where it starts.
      description: the run's name.
      enabled: False shows nothing.
    """

    def __init__(self, num_examples: int, examples_seen: int, description: str, enabled: bool):
        self._description = description
        self._num_examples = num_examples
        self._enabled = enabled
        self._bar = tqdm(
            total=num_examples,
            initial=examples_seen,
            desc=description,
            unit="img",
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

    def row(self, row: dict[str, Any]) -> None:
        """Shows the newest row of metrics."""
        facts = {
            "epoch": f"{row['epoch']:.1f}",
            "batch": row["global_batch_size"],
            "lr": f"{row['learning_rate']:.3g}",
            "loss": f"{row['train_loss']:.3f}",
        }
        if "test_accuracy" in row:
            facts["test"] = f"{row['test_accuracy']:.2%}"
        if not self._bar.disable:
            self._bar.set_postfix(facts, refresh=False)
        elif self._enabled and "test_accuracy" in row:
            done = row["examples_seen"] / self._num_examples
            text = "  ".join(f"{name} {value}" for name, value in facts.items())
            rate = f"{row['images_per_second']:,.0f} img/s"
            self.say(f"{done:4.0%}  {text}  {rate}")

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._enabled:
            tqdm.write(f"{self._description}: {text}", file=sys.stderr)
