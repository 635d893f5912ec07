"""Batches of JPEG examples that worker processes prepare ahead of time.

The main process says which stream positions it will ask for. Only this file knows their order. A
worker gets a few positions at a time, and its result for each depends on that position alone.
"""

import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from batchgrow.data.datasets import evaluation_places
from batchgrow.data.workers import JpegLoader, Replaced, SharedImages, Worker

log = logging.getLogger(__name__)

CHUNK = 16  # examples that a worker decodes at a time
SLOTS = 4  # chunks for each worker that are decoded ahead


@dataclass
class _Chunk:
    """Positions that were requested one after another, int64 `(n,)`, and their indices.

    The first `taken` of them have been used.
    """

    positions: np.ndarray
    indices: np.ndarray
    taken: int = 0
    slot: int = -1
    future: "Future[tuple[np.ndarray, list[Replaced]]] | None" = None


class WorkerFeed:
    """Decodes the examples of stream positions in worker processes. The workers start when needed.

    Its memory is bounded: at most `SLOTS * CHUNK` examples for each worker are decoded ahead, and
    further requests wait for a free place.

    Args:
      load: reads and decodes examples.
      indices: returns the indices into the source for stream positions, both int64 of one shape.
        By default an index is its position, as for a test set.
      num_workers: number of processes; 0 uses one thread of this process.

    Attributes:
      arrays: (): the devices hold no data.
      example: shapes and dtypes of one example as the host sends it.
      num_replaced: bad records that were replaced in the batches returned so far; each is logged.

    Raises:
      ValueError: if `load` cannot be sent to worker processes.
    """

    def __init__(
        self,
        load: JpegLoader,
        indices: Callable[[np.ndarray], np.ndarray] = np.asarray,
        *,
        num_workers: int = 0,
    ):
        example = example_of(load.image_size)
        self.arrays = ()
        self.example = {"examples": example, "position": jax.ShapeDtypeStruct((), np.uint32)}
        self.num_replaced = 0
        self._load, self._indices = load, indices
        self._pickled = _pickle(load) if num_workers else b""
        self._workers: list[Worker] = []
        self._own = threading.local()  # each thread talks to a worker of its own
        num_threads = max(1, num_workers)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="batchgrow decode")
        num_slots = SLOTS * num_threads
        self._memory = SharedImages((num_slots, CHUNK, *example["image"].shape))
        self._free = list(range(num_slots))
        self._started: deque[_Chunk] = deque()
        self._waiting: deque[_Chunk] = deque()

    def read_ahead(self, positions: np.ndarray) -> bool:
        """Starts to prepare the examples at these positions, after those requested before.

        Args:
          positions: int64 of any shape, in the order in which `batch` will be given them.

        Returns whether there was room. Without room nothing is requested.
        """
        if self._waiting:
            return False
        self._request(positions)
        return True

    def examples(self, batch: dict[str, Any], arrays: Any) -> Any:
        """Returns the part of a batch that the task takes."""
        return batch["examples"]

    def _request(self, positions: np.ndarray) -> None:
        flat = np.array(positions, np.int64).ravel()
        indices = self._indices(flat)
        for start in range(0, flat.size, CHUNK):
            part = slice(start, start + CHUNK)
            self._waiting.append(_Chunk(flat[part], indices[part]))
        self._start()

    def batch(self, positions: np.ndarray) -> dict[str, Any]:
        """Returns the examples at these positions, and waits for those that are not ready.

        Positions that were requested before these and not taken are dropped. Positions that were
        not requested are decoded now.

        Args:
          positions: int64 of any shape.

        Returns:
          `{"examples": {"image": uint8 (*shape, image_size, image_size, 3), "label": int32},
          "position": uint32}`.

        Raises:
          BadRecordError: if a record cannot be read or decoded, or has a label that is no class.
          RuntimeError: if a worker process has ended.
        """
        positions = np.array(positions, np.int64)
        wanted = positions.ravel()
        images = np.empty((wanted.size, *self._memory.array.shape[2:]), np.uint8)
        labels = np.empty(wanted.size, np.int32)
        replaced: dict[Replaced, None] = {}  # a position may occur twice in one batch
        done = 0
        while done < wanted.size:
            if not self._started:  # then nothing waits either
                self._request(wanted[done:])
            chunk = self._started[0]
            here = slice(chunk.taken, chunk.taken + wanted.size - done)
            found = chunk.positions[here]
            if not np.array_equal(found, wanted[done : done + found.size]):
                self._drop_first()
                continue
            target = slice(done, done + found.size)
            assert chunk.future is not None
            found_labels, bad = chunk.future.result()  # labels, int32 (n,), and what was replaced
            labels[target] = found_labels[here]
            replaced |= dict.fromkeys(one for one in bad if one.position in found)
            images[target] = self._memory.array[chunk.slot, : len(chunk.positions)][here]
            done += found.size
            chunk.taken += found.size
            if chunk.taken == len(chunk.positions):
                self._drop_first()
        self.num_replaced += len(replaced)
        for one in replaced:
            log.warning("replaced %s", one.line)
        return {
            "examples": {
                "image": images.reshape(*positions.shape, *images.shape[1:]),
                "label": labels.reshape(positions.shape),
            },
            "position": positions.astype(np.uint32),
        }

    def peek(self, positions: np.ndarray) -> dict[str, Any]:
        """Like `batch`, but decodes in this process. It does not take what the workers made."""
        positions = np.array(positions, np.int64)
        examples = self._load.gather(self._indices(positions), positions)
        return {"examples": examples, "position": positions.astype(np.uint32)}

    def close(self) -> None:
        """Ends the workers. The examples that they have prepared are lost."""
        self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()
        self._memory.close()

    def __enter__(self) -> "WorkerFeed":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        """Gives chunks that wait to the workers, as long as there is a free slot."""
        while self._waiting and self._free:
            chunk = self._waiting.popleft()
            chunk.slot = self._free.pop()
            chunk.future = self._threads.submit(self._decode, chunk)
            self._started.append(chunk)

    def _decode(self, chunk: _Chunk) -> tuple[np.ndarray, list[Replaced]]:
        """The labels, and the replaced records. Runs in a thread for each worker."""
        if not self._pickled:
            images = self._memory.array[chunk.slot, : len(chunk.positions)]
            return self._load(chunk.indices, chunk.positions, images)
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = Worker(self._pickled, self._memory)
            self._workers.append(worker)
        return worker(chunk.slot, chunk.indices, chunk.positions)

    def _drop_first(self) -> None:
        """Frees the slot of the first started chunk for one that waits."""
        chunk = self._started.popleft()
        assert chunk.future is not None
        if not chunk.future.cancel():
            wait([chunk.future])
        self._free.append(chunk.slot)
        self._start()


def evaluation_batches(
    feed: WorkerFeed,
    num_examples: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yields the batches of `datasets.evaluation_batches`, which the workers of a feed decode.

    The loader should have `on_bad_record="stop"`: an accuracy on other examples cannot be compared.

    Args:
      feed: the feed of the test set, without `indices`. It can be used again afterwards.
      num_examples: the size of the test set.
      batch_size, process_index, process_count: as in `datasets.evaluation_batches`.

    Yields:
      `{"examples": {"image": uint8 (local examples, h, w, 3), "label": int32}, "mask": float32}`.

    Raises:
      BadRecordError: if a record cannot be read or decoded, or has a label that is no class.
    """
    places = list(evaluation_places(num_examples, batch_size, process_index, process_count))
    feed._request(np.array([positions for positions, _ in places]))
    for positions, mask in places:
        yield {"examples": feed.batch(positions)["examples"], "mask": mask}


def example_of(image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of one decoded example.

    Args:
      image_size: height and width of the images, in pixels.
    """
    return {
        "image": jax.ShapeDtypeStruct((image_size, image_size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((), np.int32),
    }


def _pickle(load: JpegLoader) -> bytes:
    try:
        return pickle.dumps(load)
    except Exception as error:
        raise ValueError(
            f"the data source cannot be sent to workers ({type(error).__name__}: {error}); make it "
            "picklable, or set run.num_workers to 0"
        ) from error
