"""Data sets of encoded images, which worker processes decode."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgrow.data import jpeg
from batchgrow.data.stream import Stream
from batchgrow.data.worker_feed import WorkerFeed, evaluation_batches, example_of
from batchgrow.data.workers import EncodedSource, JpegLoader


@dataclass(frozen=True, eq=False)
class JpegDataset:
    """Examples `{"image": uint8 (size, size, 3), "label": int32}` of encoded images.

    Attributes:
      source: the encoded images.
      crop: the crop of an image from its encoded bytes and its stream position.
      image_size: the side of the decoded images, in pixels.
      num_classes: a label outside of `range(num_classes)` raises an error.
      on_bad_record: for training data: "stop", or "replace" by the next readable example.
    """

    source: EncodedSource
    crop: Callable[[bytes, int], jpeg.Crop]
    image_size: int
    num_classes: int
    on_bad_record: str = "stop"

    @property
    def num_examples(self) -> int:
        return len(self.source)

    @property
    def example(self) -> Any:
        return example_of(self.image_size)

    def gather(self, indices: np.ndarray) -> Any:
        """The examples at these indices, decoded here; their crops are those of equal positions."""
        indices = np.asarray(indices, np.int64)
        return self.loader().gather(indices, indices)

    def loader(self) -> JpegLoader:
        """Returns the loader that the workers run."""
        return JpegLoader(
            self.source, self.crop, self.image_size, self.on_bad_record, self.num_classes
        )

    def feed(self, stream: Stream, num_workers: int) -> WorkerFeed:
        """A feed of training batches that worker processes decode."""
        return WorkerFeed(self.loader(), stream.indices, num_workers=num_workers)

    def batches(
        self, batch_size: int, num_workers: int, process_index: int, process_count: int
    ) -> Iterator[dict[str, Any]]:
        """Evaluation batches, as `datasets.evaluation_batches`, decoded by worker processes."""
        place = process_index, process_count
        with WorkerFeed(self.loader(), num_workers=num_workers) as feed:
            yield from evaluation_batches(feed, self.num_examples, batch_size, *place)
