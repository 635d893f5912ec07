"""Classification of images, rows of a table, or any other arrays."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from batchgrow.data.augment import (
    AUGMENTATIONS,
    PADDING,
    VIEWS,
    augment,
    cut_out,
    erase,
    jitter,
    views,
)
from batchgrow.models.dropout import apply
from batchgrow.tasks import Metric, Outputs, Variables

Images = dict[str, jax.Array]
COLOURS = ("brightness", "contrast", "saturation")


@dataclass(frozen=True, eq=False)
class Classification:
    """Cross entropy of `{"image": (examples, ..., channels), "label": int (examples,)}`.

    An "image" is usually uint8 `(examples, height, width, channels)`. It may have any other shape
    and dtype, such as float32 `(examples, columns)`.

    Attributes:
      model: called as `model(images, train=...)` with float32 images; gives logits
        `(examples, num_classes)`.
      num_classes: the number of classes.
      mean: the mean of each channel, or one mean for all. None takes pixels from 0..255 to 0..1 and
        leaves floats as they are.
      std: the standard deviation of each channel, or one for all; None as for `mean`.
      augment: how training images are augmented: "none", "flip" or "crop_flip" (see
        `data.augment`).
      label_smoothing: probability that training spreads evenly over all classes.
      brightness: how far training changes the brightness of images, 0..1 (see
        `data.augment.jitter`).
      contrast: the same for their contrast.
      saturation: the same for their saturation.
      random_erasing: the probability that a rectangle of a training image is replaced by random
        pixels (see `data.augment.erase`).
      cutout: the side in pixels of a square of each training image that is set to the mean; 0 for
        none (see `data.augment.cut_out`).
      test_views: the views of an image whose probabilities an evaluation averages: "one", "flip" or
        "crops_flips" (see `data.augment.views`).

    Raises:
      ValueError: for a field out of its range.
    """

    model: nn.Module
    num_classes: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: str = "none"
    label_smoothing: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    random_erasing: float = 0.0
    cutout: int = 0
    test_views: str = "one"

    inputs = (("image", "x"), ("label", "y"))
    metrics = (Metric("accuracy", "higher", percent=True), Metric("loss", "lower"))

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTATIONS:
            raise ValueError(
                f"unknown task.augment {self.augment!r}; choose {', '.join(AUGMENTATIONS)}"
            )
        if self.test_views not in VIEWS:
            raise ValueError(
                f"unknown task.test_views {self.test_views!r}; choose {', '.join(VIEWS)}"
            )
        for name in (*COLOURS, "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"task.{name} {getattr(self, name)} must be in 0..1")
        if self.cutout < 0:
            raise ValueError(f"task.cutout {self.cutout} must be 0 or more")
        if self.num_classes < 2:
            raise ValueError(f"model.num_classes {self.num_classes} must be 2 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"task.label_smoothing {self.label_smoothing} must be at least 0 and below 1"
            )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"task.std {tuple(self.std)} must be above 0")

    def check(self, examples: Images, split: str) -> None:
        """Checks a whole split, host arrays.

        Raises:
          ValueError: if the images do not fit the fields, or a label is not a class.
        """
        images = examples["image"]
        shape = images.shape[1:]
        if not shape:
            raise ValueError(
                "each example of the inputs is one number; give them a second axis, (examples, "
                "features) or (examples, height, width, channels)"
            )
        channels = shape[-1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise ValueError(
                    f"task.{name} has {len(values)} values and the images have {channels} "
                    "channels; give one value for each channel, or one for all"
                )
        plain = {"augment": "none", "test_views": "one", "cutout": 0, "random_erasing": 0.0}
        plain |= dict.fromkeys(COLOURS, 0.0)
        for name, off in plain.items():
            value = getattr(self, name)
            if value == off:
                continue
            if len(shape) != 3:
                raise ValueError(
                    f"task.{name} {value!r} needs images (height, width, channels), but an example "
                    f"has shape {shape}; set it to {off!r}"
                )
            if value in ("crop_flip", "crops_flips") and min(shape[:2]) <= PADDING:
                raise ValueError(
                    f"task.{name} {value!r} reflects {PADDING} pixels at each edge and needs "
                    f"images of {PADDING + 1} pixels a side or more, but these have {shape[0]} x "
                    f"{shape[1]}; choose 'flip' or {off!r}"
                )
            if name in (*COLOURS, "random_erasing") and images.dtype != np.uint8:
                raise ValueError(
                    f"task.{name} {value} needs pixels 0..255 of type uint8, but the images are "
                    f"{images.dtype}; set it to 0"
                )
            if name in COLOURS and channels != 3:
                raise ValueError(
                    f"task.{name} {value} needs red, green and blue, but the images have "
                    f"{channels} channels; set it to 0"
                )
        least, most = examples["label"].min(), examples["label"].max()
        if least < 0:
            raise ValueError(
                f"the {split} split has a label {least}; labels are 0 or more, so choose a split "
                "whose examples are labelled"
            )
        if most >= self.num_classes:
            raise ValueError(
                f"model.num_classes is {self.num_classes}, but the {split} split has a label "
                f"{most}; set the field to {most + 1} or more"
            )

    def init(self, key: jax.Array, examples: Images) -> Variables:
        return self.model.init(key, self._normalised(examples["image"]), train=True)

    def loss(
        self, variables: Variables, examples: Images, keys: jax.Array | None, *, train: bool
    ) -> Outputs:
        images, labels = examples["image"], examples["label"]
        if not train and self.test_views != "one":
            logits, model_state = self._log_of_mean(variables, images)
        else:
            inputs = self._normalised(images) if keys is None else self._augmented(images, keys)
            logits, model_state = apply(self.model, variables, inputs, keys, train=train)
        smoothing = self.label_smoothing if train else 0.0
        losses = cross_entropy(logits, labels, smoothing)
        return Outputs(losses, model_state, {"correct": jnp.argmax(logits, -1) == labels})

    def probabilities(self, variables: Variables, examples: Images) -> jax.Array:
        """Returns the probability of each class in evaluation, float32 `(examples, classes)`."""
        images = examples["image"]
        if self.test_views != "one":
            return jnp.exp(self._log_of_mean(variables, images)[0])
        logits, _ = apply(self.model, variables, self._normalised(images), None, train=False)
        return jax.nn.softmax(logits)

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        count = sums["count"]
        return {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count}

    def _augmented(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        images = augment(images, keys, self.augment)
        amounts = [getattr(self, name) for name in COLOURS]
        if any(amounts):
            images = jitter(images, keys, amounts)
        if self.random_erasing:
            images = erase(images, keys, self.random_erasing)
        inputs = self._normalised(images)
        return cut_out(inputs, keys, self.cutout) if self.cutout else inputs

    def _log_of_mean(
        self, variables: Variables, images: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The logarithm of the mean probabilities of all views, and the model state."""

        def log_of(view: tuple[jax.Array, jax.Array]) -> jax.Array:
            seen = jnp.take(jnp.take(images, view[0], 1), view[1], 2)
            logits, _ = apply(self.model, variables, self._normalised(seen), None, train=False)
            return jax.nn.log_softmax(logits)

        height, width = images.shape[1:3]
        rows, columns = views(height, width, self.test_views)
        found = jax.lax.map(log_of, (jnp.asarray(rows), jnp.asarray(columns)))
        model_state = {name: tree for name, tree in variables.items() if name != "params"}
        return jax.nn.logsumexp(found, 0) - math.log(len(rows)), model_state

    def _normalised(self, images: jax.Array) -> jax.Array:
        pixels = images.dtype == jnp.uint8
        mean = (0.0,) if self.mean is None else self.mean
        std = (255.0 if pixels else 1.0,) if self.std is None else self.std
        shape = (1,) * (images.ndim - 1) + (-1,)
        shift = np.asarray(mean, np.float32).reshape(shape)
        scale = 1.0 / np.asarray(std, np.float32).reshape(shape)
        return (images.astype(jnp.float32) - shift) * scale


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy of each example, float32 `(examples,)`; NaN for a label that is no class."""
    num_classes = logits.shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    return jnp.where((labels >= 0) & (labels < num_classes), losses, jnp.nan)
