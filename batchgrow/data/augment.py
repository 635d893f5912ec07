"""Random crops and flips of images, on the device and inside the step.

The random key of each image is folded from (seed, stream position). The augmentation therefore
depends on nothing else: not on the batch, the device, or where a run was resumed.
"""

import jax
import jax.numpy as jnp

AUGMENTATIONS = ("none", "crop_flip", "flip")
PADDING = 4  # pixels, reflected (Zagoruyko & Komodakis 2016)


def augment(images: jax.Array, keys: jax.Array, kind: str) -> jax.Array:
    """Returns randomly cropped and flipped images.

    Args:
      images: `(examples, height, width, channels)`, of any dtype.
      keys: typed PRNG keys `(examples,)`.
      kind: "none"; "flip": a horizontal flip half of the time; "crop_flip": also a random crop of
        the image padded by 4 reflected pixels. The image must have at least 5 pixels a side.

    Returns:
      Images of the same shape and dtype.
    """
    if kind == "none":
        return images
    height, width = images.shape[1:3]
    rows, columns = window(keys, height, width, kind)
    # One axis after the other: a gather of single pixels takes a TPU several times as long.
    images = jnp.take_along_axis(images, rows[:, :, None, None], 1)
    return jnp.take_along_axis(images, columns[:, None, :, None], 2)


def window(keys: jax.Array, height: int, width: int, kind: str) -> tuple[jax.Array, jax.Array]:
    """The source rows `(examples, height)` and columns `(examples, width)` of each new image.

    Shifts are uniform over -4..4 in both directions; the flip is a fair coin.
    """
    bits = jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys)
    rows, columns = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    columns = jnp.where(bits[:, 2:] % 2 == 1, columns[:, ::-1], columns)
    if kind == "crop_flip":
        shifts = (bits[:, :2] % (2 * PADDING + 1)).astype(jnp.int32) - PADDING
        rows = _reflect(rows + shifts[:, :1], height)
        columns = _reflect(columns + shifts[:, 1:], width)
    return jnp.broadcast_to(rows, (len(keys), height)), columns


def _reflect(i: jax.Array, size: int) -> jax.Array:
    """Indices beyond an edge, mirrored: -1 becomes 1, `size` becomes `size - 2`."""
    i = jnp.abs(i)
    return jnp.where(i >= size, 2 * (size - 1) - i, i)
