"""Random changes of images, on the device and inside the step, and the fixed views of a test.

The random key of each image is folded from (seed, stream position). The augmentation therefore
depends on nothing else: not on the batch, the device, or where a run was resumed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AUGMENTATIONS = ("none", "crop_flip", "flip")
PADDING = 4  # pixels, reflected (Zagoruyko & Komodakis 2016)
VIEWS = ("one", "flip", "crops_flips")
# The red, green and blue of a grey of the same brightness (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
ERASED_SHARE, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # Zhong et al. 2017
TRIES = 10  # to place the erased rectangle
# Folded into the key of an image, so that its draws are independent.
_JITTER, _ERASE, _CUT = 2**32 - 3, 2**32 - 2, 2**32 - 1


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


def _reflect(i: Any, size: int) -> Any:
    """Indices beyond an edge, mirrored: -1 becomes 1, `size` becomes `size - 2`."""
    return size - 1 - abs(size - 1 - abs(i))


def jitter(images: jax.Array, keys: jax.Array, amounts: Sequence[float]) -> jax.Array:
    """Returns images whose brightness, contrast and saturation are changed, in a random order.

    Each is a mixture, factor * image + (1 - factor) * other, cut off at 0 and 255. The other is
    black, the mean grey of the image, and the image in grey. The factors are uniform in 1 - amount
    to 1 + amount; the amounts of fb.resnet.torch are 0.4 each.

    Args:
      images: uint8 `(examples, height, width, 3)`: red, green and blue.
      keys: typed PRNG keys `(examples,)`.
      amounts: of brightness, contrast and saturation, in 0..1; 0 leaves them as they are.

    Returns:
      Images of the same shape and dtype, rounded.
    """

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        of_order, of_factors = jax.random.split(jax.random.fold_in(key, _JITTER))
        order = jax.random.permutation(of_order, 3)
        factors = 1 + jnp.asarray(amounts) * jax.random.uniform(of_factors, (3,), minval=-1)
        pixels = image.astype(jnp.float32)
        for kind in order:
            grey = (pixels @ jnp.asarray(LUMA))[..., None]
            other = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, grey.mean(), grey))
            pixels = jnp.clip(other + factors[kind] * (pixels - other), 0, 255)
        return jnp.round(pixels).astype(image.dtype)

    return jax.vmap(one)(images, keys)


def erase(images: jax.Array, keys: jax.Array, probability: float) -> jax.Array:
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896): a rectangle of random pixels.

    Its share of the area is uniform in 0.02 to 0.4 and its height over its width in 0.3 to 1 / 0.3,
    drawn anew until it fits into the image, 10 times at most. The paper's probability is 0.5.

    Args:
      images: uint8 `(examples, height, width, channels)`.
      keys: typed PRNG keys `(examples,)`.
      probability: that an image is changed.

    Returns:
      Images of the same shape and dtype.
    """
    height, width = images.shape[1:3]

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, _ERASE), 5)
        area = height * width * _uniform(keys[0], ERASED_SHARE, (TRIES,))
        aspect = _uniform(keys[1], ASPECT, (TRIES,))
        tall, wide = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        fits = (tall < height) & (wide < width)
        first = jnp.argmax(fits)
        place = jax.random.uniform(keys[2], (2,))
        rows = _between(place[0], tall[first], height)[:, None]
        columns = _between(place[1], wide[first], width)[None, :]
        inside = rows & columns & fits[first]
        inside &= jax.random.bernoulli(keys[3], probability)
        noise = jax.random.bits(keys[4], image.shape, jnp.uint8)
        return jnp.where(inside[..., None], noise, image)

    return jax.vmap(one)(images, keys)


def cut_out(images: jax.Array, keys: jax.Array, side: int) -> jax.Array:
    """Cutout (DeVries & Taylor 2017, arXiv 1708.04552): a square of zeros.

    Its centre is uniform over the image, so a part of it may be outside. The paper's side is 16
    pixels on CIFAR-10 and 8 on CIFAR-100.

    Args:
      images: normalised, so that zero is the mean, `(examples, height, width, channels)`.
      keys: typed PRNG keys `(examples,)`.
      side: in pixels.
    """
    height, width = images.shape[1:3]
    sizes = jnp.asarray((height, width))

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        centre = jax.random.randint(jax.random.fold_in(key, _CUT), (2,), 0, sizes)
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        start = centre - side // 2
        inside = (rows >= start[0]) & (rows < start[0] + side)
        inside &= (columns >= start[1]) & (columns < start[1] + side)
        return jnp.where(inside[..., None], 0.0, image)

    return jax.vmap(one)(images, keys)


def views(height: int, width: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The source rows `(views, height)` and columns `(views, width)` of each view of a test image.

    Args:
      kind: "one": the image; "flip": also mirrored; "crops_flips": ten, the image and the crops at
        the four corners of the image padded by 4 reflected pixels, each also mirrored
        (Krizhevsky, Sutskever & Hinton 2012, Sec. 4.1, whose crops are from a larger image).
    """
    ends = (-PADDING, PADDING)
    shifts = [(0, 0)]
    if kind == "crops_flips":
        shifts += [(down, right) for down in ends for right in ends]
    rows = np.stack([_reflect(np.arange(height) + down, height) for down, _ in shifts])
    columns = np.stack([_reflect(np.arange(width) + right, width) for _, right in shifts])
    if kind == "one":
        return rows, columns
    return np.concatenate([rows, rows]), np.concatenate([columns, columns[:, ::-1]])


def _uniform(key: jax.Array, bounds: tuple[float, float], shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=bounds[0], maxval=bounds[1])


def _between(place: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """True for `length` of `size` neighbours; place 0..1 says where among all that fit."""
    start = jnp.floor(place * (size - length + 1))
    i = jnp.arange(size)
    return (i >= start) & (i < start + length)
