"""Random crops and flips against a plain numpy reference."""

import jax
import jax.numpy as jnp
import numpy as np

from batchgrow.data.augment import PADDING, augment, window
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
