"""The parts of a plan: segments, and the updates in them."""

from typing import NamedTuple


class Segment(NamedTuple):
    """A whole number of updates of one batch size.

    The recipe puts the start of the segment at its nominal start. The real start is within half a
    batch of that, because each segment starts where the one before it ended. An update that starts
    before the nominal start takes the learning rate at the nominal start, so that it is on the
    right side of a jump.

    Attributes:
      start_examples: examples seen before the first update.
      num_updates: at least 1.
      batch_size: B, the examples of one update on all devices together.
      momentum: m; of a plan whose momentum changes, that of the first update.
      nominal_start_examples: where the recipe puts the start.
    """

    start_examples: int
    num_updates: int
    batch_size: int
    momentum: float
    nominal_start_examples: int

    @property
    def end_examples(self) -> int:
        """Examples seen after the last update."""
        return self.start_examples + self.num_updates * self.batch_size


class Point(NamedTuple):
    """One update: its position in the run and its hyper-parameters.

    Attributes:
      start_examples: examples seen before the update.
      update: updates made before it in the whole run.
      segment: index of its segment.
      epoch: start_examples / N.
      batch_size: B, the examples of the update on all devices together.
      learning_rate: the learning rate of the update.
      momentum: m, or b1. With `optimizer.betas_follow_batch` of a config it is the b1 of the
        recipe's batch size, and a larger batch has a smaller one.
      noise_scale: learning_rate * N / (B * (1 - m)). None for optimizers that do not have one.
      noise_scale_exact: learning_rate / (1 - m) * (N / B - 1), or None.
      diffusion: learning_rate * sqrt(N / B) of normalised steps, such as Adam's, or None.
      accumulation_epochs: B / (N * (1 - m)), the epochs over which momentum averages gradients.
    """

    start_examples: int
    update: int
    segment: int
    epoch: float
    batch_size: int
    learning_rate: float
    momentum: float
    noise_scale: float | None
    noise_scale_exact: float | None
    diffusion: float | None
    accumulation_epochs: float

    @property
    def noise(self) -> dict[str, float]:
        """The noise scale or the diffusion by its name; empty if the optimizer has neither."""
        both = {"noise_scale": self.noise_scale, "diffusion": self.diffusion}
        return {name: value for name, value in both.items() if value is not None}

    @property
    def end_examples(self) -> int:
        """Examples seen after the update."""
        return self.start_examples + self.batch_size

    @property
    def positions(self) -> range:
        """The stream positions of the update's examples."""
        return range(self.start_examples, self.end_examples)
