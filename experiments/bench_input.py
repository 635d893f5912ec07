"""Measure how many ImageNet images a host prepares, with this pipeline and with tf.data.

    python -m experiments.bench_input --data_dir=DIR [--tf] [--json]

Both read the same files and use all cores: this pipeline with one worker process for each, tf.data
with AUTOTUNE. Two rates are measured. The first is images per second of wall time, divided by the
number of cores. The second is images per second of CPU time of the process and its workers; it
remains meaningful while other programs use the same cores. The repetitions of the pipelines
alternate, and medians are reported. This pipeline returns uint8 images, which the device
normalises. tf.data returns float32 images, as its resize does, and for comparison uint8. Linux
only.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
from absl import flags

from batchgrow.data import jpeg, prepared, stream, worker_feed, workers
from experiments import benchmark

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder in which tensorflow_datasets has imagenet2012."
)
_SPLIT = flags.DEFINE_string("split", "train", "Split of the data set.")
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "Worker processes; 0: one for each core.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of a decoded image in pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a batch.")
_NUM_BATCHES = flags.DEFINE_integer("num_batches", 20, "Batches in a repetition.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 7, "Repetitions of each pipeline.")
_TF = flags.DEFINE_bool("tf", False, "Measure tf.data too (pip install -e '.[tf]').")

Pipeline = Callable[[], AbstractContextManager[Iterator[Any]]]


@contextmanager
def our_batches(
    source: workers.EncodedSource, batch_size: int, image_size: int, num_workers: int
) -> Iterator[Iterator[Any]]:
    """The training stream as `experiments.imagenet` has it."""
    load = workers.JpegLoader(source, partial(jpeg.training_crop, seed=0), image_size)
    indices = stream.Stream(len(source), seed=0).indices

    def batches(feed: worker_feed.WorkerFeed) -> Iterator[Any]:
        positions = np.arange(batch_size)
        feed.read_ahead(positions)
        while True:
            # The next batch is requested before this one is taken, as in training.
            feed.read_ahead(positions + batch_size)
            yield feed.batch(positions)
            positions = positions + batch_size

    with worker_feed.WorkerFeed(load, indices, num_workers=num_workers) as feed:
        yield batches(feed)


@contextmanager
def tf_batches(
    records: str, batch_size: int, image_size: int, dtype: str
) -> Iterator[Iterator[Any]]:
    """The usual tf.data pipeline over a TFRecord file.

    `dtype`: "float32", as the resize returns it and most programs keep it, or "uint8".
    """
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def decode(record: Any) -> dict[str, Any]:
        example = tf.io.parse_single_example(record, features)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(example["image"]),
            bounding_boxes=tf.zeros([1, 0, 4]),
            aspect_ratio_range=jpeg.ASPECT,
            area_range=jpeg.AREA,
            max_attempts=jpeg.MAX_TRIES,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, [image_size, image_size], "bilinear")
        image = tf.image.random_flip_left_right(image)
        return {"image": tf.cast(image, dtype), "label": tf.cast(example["label"], tf.int32)}

    batches = tf.data.TFRecordDataset(records).repeat().shuffle(256)
    batches = batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    yield batches.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def write_records(source: workers.EncodedSource, path: str) -> None:
    """The same encoded images as one TFRecord file."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(path) as writer:
        for index in range(len(source)):
            example = source[index]
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["image"]]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[example["label"]]))
            features = tf.train.Features(feature={"image": image, "label": label})
            writer.write(tf.train.Example(features=features).SerializeToString())


def seconds() -> np.ndarray:
    """(wall, CPU) seconds so far; CPU time of this process and its running child processes."""
    cpu = time.process_time()
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as children:
            for child in children.read().split():
                with open(f"/proc/{child}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return np.array([time.perf_counter(), cpu])


def bench(
    source: workers.EncodedSource, num_workers: int, records: str
) -> list[dict[str, str | float]]:
    """Images a second per core of each pipeline; tf.data too, if `records` is given.

    Each repetition starts its pipeline and stops it, or one would read ahead in another's time.

    Returns:
      For each pipeline its name, its two rates, and this pipeline's rates divided by them.
    """
    size, image_size = _BATCH_SIZE.value, _IMAGE_SIZE.value
    pipelines: dict[str, Pipeline] = {
        "batchgrow": partial(our_batches, source, size, image_size, num_workers)
    }
    for dtype in ("float32", "uint8") if records else ():
        pipelines[f"tf.data {dtype}"] = partial(tf_batches, records, size, image_size, dtype)
    taken: dict[str, list[np.ndarray]] = {name: [] for name in pipelines}
    for _ in range(_REPETITIONS.value):
        for name, start_pipeline in pipelines.items():
            with start_pipeline() as batches:
                for _ in range(4 * max(2, num_workers)):  # made while it started
                    next(batches)
                start = seconds()
                for _ in range(_NUM_BATCHES.value):
                    next(batches)
                taken[name].append(seconds() - start)
    images = size * _NUM_BATCHES.value / np.array([num_workers, 1])
    rates = {name: images / np.median(values, axis=0) for name, values in taken.items()}
    rows = []
    for name, (wall, processor) in rates.items():
        our_wall, our_processor = rates["batchgrow"] / rates[name]
        rows.append(
            {
                "pipeline": name,
                "images_per_wall_second_and_core": float(wall),
                "ours_over_this": float(our_wall),
                "images_per_cpu_second": float(processor),
                "ours_over_this_by_cpu": float(our_processor),
            }
        )
    return rows


def main() -> str:
    """The table, a row for each pipeline."""
    if _DATA_DIR.value is None:
        raise ValueError("--data_dir is missing: the folder in which tfds has imagenet2012")
    source = prepared.open_source("imagenet2012", _SPLIT.value, _DATA_DIR.value, decode=False)
    num_workers = _NUM_WORKERS.value or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        records = os.path.join(folder, "records") if _TF.value else ""
        if records:
            write_records(source, records)
        rows = bench(source, num_workers, records)
    side = _IMAGE_SIZE.value
    notes = [
        f"{len(source)} images to {side} x {side}, {num_workers} cores, medians of "
        f"{_REPETITIONS.value} interleaved repetitions"
    ]
    if records:
        import tensorflow as tf

        notes.append(f"TensorFlow {tf.__version__}")
    return benchmark.report("bench_input", rows, notes)


if __name__ == "__main__":
    benchmark.run(main)
