"""Write a prepared `imagenet2012` of generated JPEGs, to try the input pipeline without ImageNet.

    python -m experiments.make_fake_imagenet --out=DIR --num_train=1281 --num_validation=500

The folder has the files, names and features that `tfds build imagenet2012
--file_format=array_record` writes (version 5.1.0), so it is read in the same way. An image depends
on its class, which a model can therefore learn. Sizes in pixels and in bytes are approximately
those of ImageNet. The shares of the kinds of JPEG are those of 1,000 of its files.
"""

import os
import struct
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from absl import flags
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder

from experiments import cli

NUM_LABELS = 1000
# The shares of chroma sampling in 1,000 files of ImageNet; the other 13 are assumed to be 4:2:2.
CHROMA = {"444": 0.761, "420": 0.203, "Gray": 0.023, "422": 0.013}
EXIF_SHARE = 0.032
JPEG_QUALITY = 95
# Standard deviation of the grain: with it and the quality a JPEG takes about 110 KB on average.
GRAIN = 14.0
# (share, width, height) of the common sizes; the rest is drawn by `_draw_size`. Approximated: most
# of ImageNet has a long side of 500 pixels, and the mean is about 470 x 390.
COMMON_SIZES = (
    (0.42, 500, 375),
    (0.13, 375, 500),
    (0.10, 500, 333),
    (0.04, 333, 500),
    (0.03, 500, 500),
)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) in pixels."""
    share = rng.random()
    for common, width, height in COMMON_SIZES:
        if share < common:
            return width, height
        share -= common
    big = rng.random() < 0.15
    long_side = rng.integers(640, 1601) if big else rng.integers(120, 501)
    short_side = int(long_side * rng.uniform(0.6, 1.0))
    landscape = rng.random() < 0.7
    return (int(long_side), short_side) if landscape else (short_side, int(long_side))


def _class_colour(label: int, step: float, value: float) -> np.ndarray:
    """(3,) RGB in 0..255: multiples of an irrational step spread any number of classes evenly."""
    hue = np.float32(360.0 * ((label * step + 0.1) % 1.0))
    hsv = np.array([[[hue, 0.65, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255.0


def _smooth_noise(rng: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    """(height, width) float32 of standard normal values on a coarse grid, interpolated."""
    grid = rng.standard_normal((cells, cells), np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def render(label: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of a class, (height, width, 3) uint8: a striped disc on a coloured ground.

    Colours of ground and stripes, and the stripes' angle and number, follow from the class; size of
    picture, place and size of the disc, light and grain are random.
    """
    width, height = _draw_size(rng)
    y, x = np.ogrid[0:height, 0:width]
    x, y = (np.float32(axis / min(width, height)) for axis in (x, y))
    angle, cycles = np.pi * ((label * 0.7549) % 1.0), 5.0 + 13.0 * ((label * 0.5698) % 1.0)
    phase = rng.random(dtype=np.float32)
    across = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    stripes = 0.5 + 0.5 * np.sin(np.float32(2 * np.pi) * (np.float32(cycles) * across + phase))

    radius = rng.uniform(0.2, 0.4)
    centre_x = rng.uniform(0.2, width / min(width, height) - 0.2)
    centre_y = rng.uniform(0.2, height / min(width, height) - 0.2)
    distance = np.hypot(x - centre_x, (y - centre_y) * rng.uniform(0.8, 1.25))
    disc = np.clip((radius - distance) * 60.0, 0.0, 1.0, dtype=np.float32)

    ground = _class_colour(label, 0.6180, 0.75) + rng.normal(0.0, 16.0, 3)
    ink = _class_colour(label, 0.4142, 0.9) + rng.normal(0.0, 16.0, 3)
    light = np.float32(rng.normal(0.0, 12.0)) + 22.0 * _smooth_noise(rng, width, height, 5)
    light += GRAIN * rng.standard_normal((height, width), np.float32)
    inked = disc * stripes
    colours = zip(ground, ink, strict=True)
    channels = [inked * np.float32(b - a) + (light + np.float32(a)) for a, b in colours]
    return cv2.merge([np.clip(channel, 0, 255).astype(np.uint8) for channel in channels])


def encode(picture: np.ndarray, rng: np.random.Generator) -> bytes:
    """A JPEG whose chroma is drawn from CHROMA; a share of EXIF_SHARE has an Exif orientation."""
    kind = str(rng.choice(list(CHROMA), p=list(CHROMA.values())))
    if kind == "Gray":
        grey = np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None])
        jpeg = simplejpeg.encode_jpeg(grey, JPEG_QUALITY, "GRAY", kind)
    else:
        jpeg = simplejpeg.encode_jpeg(picture, JPEG_QUALITY, "RGB", kind)
    if rng.random() < EXIF_SHARE:
        return with_orientation(jpeg, int(rng.integers(1, 9)))
    return jpeg


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an Exif segment that holds only this orientation, 1 to 8."""
    # TIFF: byte order and the place of the directory; one entry: tag 0x0112, type short, 1 value.
    tiff = b"MM" + struct.pack(">HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def examples(
    split: str, num_examples: int, num_classes: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, example) pairs of a split; an example depends on (seed, split, index) alone.

    Labels go round, so that every class has as many examples as the next; with fewer than 1,000
    classes the first ones of ImageNet are used.
    """
    synsets = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    for index in range(num_examples):
        rng = np.random.default_rng((seed, split == "train", index))
        label = index % num_classes
        if split == "train":
            file_name = f"{synsets[label]}_{index}.JPEG"
        else:
            file_name = f"ILSVRC2012_val_{index + 1:08d}.JPEG"
        jpeg = encode(render(label, rng), rng)
        yield file_name, {"image": jpeg, "label": label, "file_name": file_name}


class FakeImagenet2012(imagenet2012_dataset_builder.Builder, skip_registration=True):
    """tfds's own builder of `imagenet2012`, with generated pictures instead of the tar files."""

    name = "imagenet2012"
    pkg_dir_path = tfds.core.tfds_path("datasets/imagenet2012")
    url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded

    def __init__(
        self, *, num_train: int, num_validation: int, num_classes: int, seed: int, **kwargs: Any
    ):
        self._sizes = {"train": num_train, "validation": num_validation}
        self._num_classes = num_classes
        self._seed = seed
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            split: examples(split, size, self._num_classes, self._seed)
            for split, size in self._sizes.items()
        }


def make(out: str, num_train: int, num_validation: int, num_classes: int, seed: int) -> str:
    """Writes `out`/imagenet2012/5.1.0 and returns its path.

    Raises ValueError where that folder is there already: fake pictures must never be mistaken for,
    or mixed with, the real ones.
    """
    if not 1 <= num_classes <= NUM_LABELS:
        raise ValueError(f"num_classes={num_classes}: ImageNet has 1 to {NUM_LABELS}")
    builder = FakeImagenet2012(
        num_train=num_train,
        num_validation=num_validation,
        num_classes=num_classes,
        seed=seed,
        data_dir=out,
        file_format="array_record",
    )
    folder = os.fspath(builder.data_path)
    if os.path.exists(folder):
        raise ValueError(f"out={out}: {folder} exists; choose another folder or delete it")
    builder.download_and_prepare()
    return folder


def _main(_: list[str]) -> int:
    values = flags.FLAGS
    start = time.perf_counter()
    folder = make(
        values.out, values.num_train, values.num_validation, values.num_classes, values.seed
    )
    seconds = time.perf_counter() - start
    num_images = values.num_train + values.num_validation
    print(f"{folder}: {num_images} images in {seconds:.1f} s, {num_images / seconds:.0f} images/s")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(
        "out",
        None,
        "Folder of the data set; give it to other commands as --data_dir.",
        required=True,
    )
    flags.DEFINE_integer("num_train", 1281, "Number of training images.", lower_bound=1)
    flags.DEFINE_integer("num_validation", 500, "Number of validation images.", lower_bound=1)
    flags.DEFINE_integer("num_classes", NUM_LABELS, "Number of the 1,000 classes that occur.")
    flags.DEFINE_integer("seed", 0, "Seed of all images and labels.")
    cli.run(_main)
