"""Random changes of images and the views of a test, against a plain numpy reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.data.augment import (
    LUMA,
    PADDING,
    augment,
    cut_out,
    erase,
    jitter,
    views,
    window,
)
from batchgrow.step import example_keys

SIZE, SHIFTS = 16, 2 * PADDING + 1


def drawn_images(num_examples: int) -> np.ndarray:
    shape = (num_examples, SIZE, SIZE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def crops_and_flips(image: np.ndarray) -> dict[bytes, tuple[int, int, bool]]:
    """Every image that padding by reflection, cropping and flipping can make of one."""
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    made = {}
    for row in range(SHIFTS):
        for col in range(SHIFTS):
            crop = padded[row : row + SIZE, col : col + SIZE]
            made[crop.tobytes()] = (row, col, False)
            made[crop[:, ::-1].tobytes()] = (row, col, True)
    return made


def augmented(kind: str, images: np.ndarray, positions: np.ndarray, seed: int = 0) -> np.ndarray:
    """The images as the step augments them at these stream positions."""

    @jax.jit
    def at(images, positions):
        return augment(images, example_keys(seed, positions), kind)

    return np.asarray(at(jnp.asarray(images), jnp.asarray(positions, jnp.uint32)))


def test_crops_are_uniform_and_half_are_flipped():
    """Each image is one that the reference can make, and each choice is as likely as it should be.

    Chi-square of 9 equally likely shifts: above 26.1 once in 1000 draws.
    """
    one, count = drawn_images(1)[0], 3000
    made = crops_and_flips(one)
    seen = augmented("crop_flip", np.repeat(one[None], count, 0), np.arange(count))
    choices = [made[image.tobytes()] for image in seen]
    for axis in (0, 1):
        found = np.bincount([choice[axis] for choice in choices], minlength=SHIFTS)
        expected = count / SHIFTS
        assert ((found - expected) ** 2 / expected).sum() < 26.1
    flips = sum(choice[2] for choice in choices)
    assert abs(flips - count / 2) < 3.3 * np.sqrt(count / 4)


def test_flip_alone_moves_nothing_else():
    images = drawn_images(64)
    seen = augmented("flip", images, np.arange(64))
    flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(seen, images, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(seen, images, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48


def test_none_changes_nothing():
    images = drawn_images(3)
    seen = augmented("none", images, np.arange(3))
    np.testing.assert_array_equal(seen, images)
    assert seen.dtype == images.dtype


def test_an_image_depends_on_seed_and_position_only():
    """Not on what stands beside it, nor on where it stands in the batch."""
    images, positions = drawn_images(12), np.arange(100, 112)
    whole = augmented("crop_flip", images, positions)
    alone = [augmented("crop_flip", images[i : i + 1], positions[i : i + 1])[0] for i in (0, 5, 11)]
    np.testing.assert_array_equal(whole[[0, 5, 11]], alone)
    np.testing.assert_array_equal(
        whole[::-1], augmented("crop_flip", images[::-1], positions[::-1])
    )
    assert not np.array_equal(whole, augmented("crop_flip", images, positions + 12))
    assert not np.array_equal(whole, augmented("crop_flip", images, positions, seed=1))


def test_windows_of_distant_positions_differ():
    """Positions are not cut off at 16 bits, or the like."""
    positions = jnp.asarray([7, 7 + 2**16, 7 + 2**24, 7 + 2**31], jnp.uint32)
    rows, cols = window(example_keys(0, positions), 32, 32, "crop_flip")
    assert len({(*r.tolist(), *c.tolist()) for r, c in zip(rows, cols, strict=True)}) == 4


def changed(function, images, positions, *args):
    """The images as a function of `data.augment` changes them at these stream positions."""
    positions = jnp.asarray(positions, jnp.uint32)
    return np.asarray(_changed(jnp.asarray(images), positions, function, args))


@partial(jax.jit, static_argnames=("function", "args"))
def _changed(images, positions, function, args):
    return function(images, example_keys(0, positions), *args)


CHANGES = [(jitter, (0.4, 0.4, 0.4)), (erase, 1.0), (cut_out, 7)]


@pytest.mark.parametrize(("function", "amount"), CHANGES)
def test_a_change_depends_on_seed_and_position_only(function, amount):
    images, positions = drawn_images(12), np.arange(100, 112)
    whole = changed(function, images, positions, amount)
    np.testing.assert_array_equal(
        whole[::-1], changed(function, images[::-1], positions[::-1], amount)
    )
    assert not np.array_equal(whole, changed(function, images, positions + 12, amount))
    assert whole.shape == images.shape and (function is cut_out or whole.dtype == np.uint8)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (0, lambda grey: 0 * grey),
        (1, lambda grey: 0 * grey + grey.mean((1, 2, 3), keepdims=True)),
        (2, lambda grey: grey),
    ],
)
def test_one_colour_is_a_mixture_with_black_the_mean_or_grey(kind, other):
    """The factor of each image, from its pixels that are not cut off, is uniform in 0.6 to 1.4."""
    amounts = [0.0, 0.0, 0.0]
    amounts[kind] = 0.4
    images = 64 + drawn_images(200) // 2
    seen = changed(jitter, images, np.arange(200), tuple(amounts)).astype(float)
    whole = images.astype(float)
    towards = other(whole @ np.array(LUMA)[:, None])
    direction = whole - towards
    inside = (seen > 0) & (seen < 255)
    top = ((seen - towards) * direction * inside).sum((1, 2, 3))
    factor = top / (direction**2 * inside).sum((1, 2, 3))
    expected = np.clip(towards + factor[:, None, None, None] * direction, 0, 255)
    assert np.abs(seen - expected).max() < 1
    assert 0.59 < factor.min() < 0.65 and 1.35 < factor.max() < 1.41
    assert abs(factor.mean() - 1) < 0.06


def test_amount_zero_changes_no_colour():
    images = drawn_images(9)
    np.testing.assert_array_equal(changed(jitter, images, np.arange(9), (0.0,) * 3), images)


def rectangle(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest rectangle that holds every True."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_erased_rectangles_have_the_papers_sizes():
    """Half of the images, one rectangle each, its area and shape within the bounds."""
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    seen = changed(erase, images, np.arange(1000), 0.5)
    erased = [image.any(-1) for image in seen if image.any()]
    assert abs(len(erased) - 500) < 3.3 * np.sqrt(250)
    shares, aspects = [], []
    for mask in erased:
        rows, columns = rectangle(mask)
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        assert mask[rows, columns].all() and tall < 32 and wide < 32
        shares.append(tall * wide / 32**2)
        aspects.append(tall / wide)
    assert 0.01 < min(shares) < 0.04 and 0.35 < max(shares) < 0.45
    assert 0.2 < min(aspects) < 0.4 and 2.5 < max(aspects) < 5
    values = seen[seen > 0]
    assert abs(values.mean() - 128) < 1


def test_cutout_is_a_square_that_may_leave_the_image():
    """Every pixel may be its centre: of 16 x 16 pixels, 7 x 7 are set to zero at most."""
    images = np.ones((2000, SIZE, SIZE, 2), np.float32)
    masks = changed(cut_out, images, np.arange(2000), 7)[..., 0] == 0
    squares = [rectangle(mask) for mask in masks]
    assert all(mask[square].all() for mask, square in zip(masks, squares, strict=True))
    places = {(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in squares}
    assert len(places) == SIZE**2
    assert max(mask.sum() for mask in masks) == 49 and min(mask.sum() for mask in masks) == 16


def test_views_are_the_crops_of_the_padded_image():
    image = drawn_images(1)[0]
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    places = [(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)]
    crops = [padded[row : row + SIZE, column : column + SIZE] for row, column in places]
    rows, columns = views(SIZE, SIZE, "crops_flips")
    seen = [image[r][:, c] for r, c in zip(rows, columns, strict=True)]
    np.testing.assert_array_equal(seen, [*crops, *(crop[:, ::-1] for crop in crops)])
    for kind, number in (("one", 1), ("flip", 2)):
        few = [image[r][:, c] for r, c in zip(*views(SIZE, SIZE, kind), strict=True)]
        np.testing.assert_array_equal(few, [image, image[:, ::-1]][:number])
