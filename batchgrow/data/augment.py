"""From stored examples to the images that a step sees, on the device and inside the step.

The random key of each example's augmentation is folded from (seed, stream position), so it
depends on nothing else: not on the batch, the device, or where a run was resumed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Batch = dict[str, jax.Array]

NAMES = ("none", "crop_flip", "flip", "random_resized_crop")
PADDING = 4  # pixels, reflected (Zagoruyko & Komodakis 2016)


def make_prepare(
    augment: str, *, mean: Sequence[float], std: Sequence[float], seed: int
) -> Callable[[Batch, Any], tuple[jax.Array, jax.Array]]:
    """A function from a batch (and the device-resident data set) to images and labels.

    The function takes either `{"image": uint8 (b, h, w, c), "label"}`, or `{"index": int32 (b,)}`
    and the data set `{"image", "label"}` to gather from; and `{"position": uint32 (b,)}` unless
    `augment` is "none". It returns float32 images `(b, h, w, c)`, normalised, and int32 labels.

    Args:
      augment: "none"; "crop_flip": a random crop of the image padded by 4 reflected pixels, and a
        horizontal flip half of the time; "flip": the flip alone;
        "random_resized_crop": done before, by the workers that decode JPEGs.
      mean, std: per channel, of 0..255 pixels.
      seed: of the augmentation.

    Raises:
      ValueError: for an unknown `augment`.
    """
    if augment not in NAMES:
        raise ValueError(f"data.augment {augment!r} is none of {', '.join(NAMES)}")
    shift = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
    scale = 1.0 / np.asarray(std, np.float32).reshape(1, 1, 1, -1)

    def prepare(batch: Batch, dataset: Any) -> tuple[jax.Array, jax.Array]:
        if "index" in batch:
            examples, labels = dataset["image"], dataset["label"][batch["index"]]
            index = batch["index"]
        else:
            examples, labels = batch["image"], batch["label"]
            index = jnp.arange(labels.shape[0])
        if augment in ("none", "random_resized_crop"):
            images = examples[index] if "index" in batch else examples
        else:
            key = jax.random.fold_in(jax.random.key(seed), 1)
            height, width = examples.shape[1:3]
            rows, cols = window(key, batch["position"], height, width, augment)
            images = examples[index[:, None, None], rows[:, :, None], cols[:, None, :]]
        return (images.astype(jnp.float32) - shift) * scale, labels

    return prepare


def window(
    key: jax.Array, positions: jax.Array, height: int, width: int, augment: str
) -> tuple[jax.Array, jax.Array]:
    """The source rows `(b, height)` and columns `(b, width)` of each augmented image.

    Shifts are uniform over -4..4 in both directions, the flip is a fair coin.
    """
    bits = jax.vmap(lambda p: jax.random.bits(jax.random.fold_in(key, p), (3,)))(positions)
    rows, cols = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    cols = jnp.where(bits[:, 2:] % 2 == 1, cols[:, ::-1], cols)
    if augment == "crop_flip":
        shifts = (bits[:, :2] % (2 * PADDING + 1)).astype(jnp.int32) - PADDING
        rows = _reflect(rows + shifts[:, :1], height)
        cols = _reflect(cols + shifts[:, 1:], width)
    return jnp.broadcast_to(rows, (len(positions), height)), cols


def _reflect(i: jax.Array, size: int) -> jax.Array:
    """Indices that ran over an edge, mirrored back: -1 to 1, size to size - 2.

    They may run over by `size - 1` at most; `config.check` refuses images smaller than that takes.
    """
    i = jnp.abs(i)
    return jnp.where(i >= size, 2 * (size - 1) - i, i)
