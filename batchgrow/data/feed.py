"""What the host sends to the devices for each update."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from batchgrow.data.sources import Images
from batchgrow.data.stream import Stream

HostBatch = dict[str, np.ndarray]
# Of each part of a batch: the shape of one example, and its dtype.
Spec = dict[str, tuple[tuple[int, ...], Any]]


class ResidentFeed:
    """The whole data set lives on the device, and the host sends indices only.

    Args:
      images: the training split.
      seed: of the stream's order.
    """

    def __init__(self, images: Images, seed: int):
        self.dataset = {"image": images.image, "label": images.label}
        self.spec: Spec = {"index": ((), np.int32), "position": ((), np.uint32)}
        self._stream = Stream(len(images), seed)

    def batch(self, positions: np.ndarray) -> HostBatch:
        """`{"index": int32, "position": uint32}`, both shaped as `positions`."""
        return {
            "index": self._stream.indices(positions).astype(np.int32),
            "position": positions.astype(np.uint32),
        }


class StreamedFeed:
    """The host reads the examples of each update and sends them; the devices hold none.

    Args:
      source: random access to `{"image": uint8 (h, w, c), "label": int}`.
      seed: of the stream's order.
    """

    def __init__(self, source: Any, seed: int):
        self.dataset = ()
        self._source = source
        shape = source[0]["image"].shape
        self.spec: Spec = {
            "image": (shape, np.uint8),
            "label": ((), np.int32),
            "position": ((), np.uint32),
        }
        self._stream = Stream(len(source), seed)

    def batch(self, positions: np.ndarray) -> HostBatch:
        """`{"image": uint8 (*shape, h, w, c), "label": int32, "position": uint32}`."""
        examples = [self._source[int(i)] for i in self._stream.indices(positions).ravel()]
        image = np.stack([example["image"] for example in examples])
        label = np.array([example["label"] for example in examples], np.int32)
        return {
            "image": image.reshape(*positions.shape, *image.shape[1:]),
            "label": label.reshape(positions.shape),
            "position": positions.astype(np.uint32),
        }


Feed = ResidentFeed | StreamedFeed


def test_batches(images: Images, batch_size: int) -> Iterator[HostBatch]:
    """Every test example once, in batches of one size; the last is padded and masked.

    Yields:
      `{"image": uint8 (batch_size, h, w, c), "label": int32, "mask": float32}`.
    """
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = (index < len(images)).astype(np.float32)
        index = np.minimum(index, len(images) - 1)
        yield {"image": images.image[index], "label": images.label[index], "mask": mask}
