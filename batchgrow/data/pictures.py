"""Images that are decoded to one size, once for a data set in memory or when they are needed."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from batchgrow.data.datasets import ArrayDataset, Dataset, SourceDataset
from batchgrow.data.source import Source, classes

MEMORY_SHARE = 0.5  # of this machine's memory, which images may take


class Pictures:
    """Random access to examples {"image": uint8 `(h, w, c)`, "label": int32}, decoded anew.

    Args:
      read: returns the image of an index, uint8 `(height, width, channels)`.
      labels: int32 `(examples,)`.
      image_size: see `fit`; None if all images have one size.
      name: returns the name of the image of an index, for messages.
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        labels: np.ndarray,
        image_size: int | None,
        name: Callable[[int], str],
    ):
        self._read, self._labels, self._size, self._name = read, labels, image_size, name
        self.shape = fit(read(0), image_size).shape

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = fit(self._read(index), self._size)
        if image.shape != self.shape:
            raise ValueError(
                f"images of different sizes ({self._name(0)} {self.shape}, {self._name(index)} "
                f"{image.shape}); set data.image_size to the side of all of them"
            )
        return {"image": image, "label": self._labels[index]}


def fit(image: np.ndarray, size: int | None) -> np.ndarray:
    """The image with its shorter side resized to `size`, and of that the middle square."""
    if size is None or image.shape[:2] == (size, size):
        return image
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=how).reshape(size, size, -1)


def make_pictures(
    read: Callable[[int], np.ndarray],
    labels: np.ndarray,
    source: Source,
    name: Callable[[int], str],
    num_classes: int,
) -> Dataset:
    """The images as a data set, in memory or decoded when they are needed.

    Raises:
      ValueError: if they have different sizes and no size is set, or need too much memory.
    """
    if source.image_size is not None and source.image_size < 1:
        raise ValueError(f"data.image_size {source.image_size} must be 1 or more")
    pictures = Pictures(read, labels, source.image_size, name)
    shape = pictures.shape
    facts = classes(num_classes) | {"in_features": shape[-1], "in_shape": shape}
    if not source.in_memory:
        return SourceDataset(pictures, facts)
    need = len(labels) * int(np.prod(shape))
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > MEMORY_SHARE * have:
        raise ValueError(
            f"data.name {source.name!r}: {len(labels):,} images of {shape} need "
            f"{need / 2**30:.1f} GiB, and this machine has {have / 2**30:.1f}; set run.input to "
            "'streamed', or data.image_size to fewer pixels"
        )
    images = np.empty((len(labels), *shape), np.uint8)

    def decode(index: int) -> None:
        images[index] = pictures[index]["image"]

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(labels))))
    return ArrayDataset({"image": images, "label": labels}, facts)
