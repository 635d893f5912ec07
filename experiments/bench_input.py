"""How many ImageNet pictures a host prepares: this pipeline, beside tf.data on the same files.

    python -m experiments.bench_input --data_dir=DIR [--tf] [--json]

Two rates. *All cores*: pictures a second of wall time, divided by the cores, with as many workers
as cores (tf.data: AUTOTUNE). *CPU time*: pictures a second of processor time with everything in one
process, which other programs on the machine disturb less. Repetitions of the pipelines are
interleaved, and the medians reported. This pipeline ends in uint8, to be normalised on the device;
tf.data in float32, as its resize returns it, and for comparison in uint8.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from absl import app, flags

from batchgrow.data import imagenet, sources, stream, workers

FLAGS = flags.FLAGS

Pipeline = Callable[[], AbstractContextManager[Iterator[Any]]]


def our_pieces(
    source: workers.EncodedSource, piece_size: int, image_size: int, num_workers: int
) -> workers.PieceStream:
    """The training stream as `experiments.imagenet` has it."""
    load = workers.PieceLoader(
        source,
        partial(workers.process_positions, piece_size=piece_size),
        stream.Stream(len(source), seed=0).indices,
        partial(imagenet.training_crop, seed=0),
        image_size,
    )
    return workers.PieceStream(load, num_workers=num_workers)


@contextmanager
def tf_pieces(
    records: str, piece_size: int, image_size: int, dtype: str, threads: int
) -> Iterator[Iterator[Any]]:
    """The usual tf.data pipeline over a TFRecord file; `threads` 0 for AUTOTUNE.

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
            aspect_ratio_range=imagenet.ASPECT,
            area_range=imagenet.AREA,
            max_attempts=imagenet.MAX_TRIES,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, [image_size, image_size], "bilinear")
        image = tf.image.random_flip_left_right(image)
        return {"image": tf.cast(image, dtype), "label": tf.cast(example["label"], tf.int32)}

    pieces = tf.data.TFRecordDataset(records).repeat().shuffle(256)
    pieces = pieces.map(decode, num_parallel_calls=threads or tf.data.AUTOTUNE)
    pieces = pieces.batch(piece_size).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    yield pieces.with_options(options).as_numpy_iterator()


def write_records(source: workers.EncodedSource, path: str) -> None:
    """The same encoded pictures as one TFRecord file."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(path) as writer:
        for index in range(len(source)):
            example = source[index]
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["image"]]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[example["label"]]))
            features = tf.train.Features(feature={"image": image, "label": label})
            writer.write(tf.train.Example(features=features).SerializeToString())


def seconds_per_piece(
    pieces: Iterator[Any], clock: Callable[[], float], warm_up: int, num_pieces: int
) -> float:
    """Mean over `num_pieces`, after `warm_up` that were made while the pipeline started."""
    for _ in range(warm_up):
        next(pieces)
    start = clock()
    for _ in range(num_pieces):
        next(pieces)
    return (clock() - start) / num_pieces


def compare(
    pipelines: dict[str, Pipeline], clock: Callable[[], float], warm_up: int
) -> dict[str, float]:
    """Median seconds per piece of each pipeline, repetitions interleaved.

    Each repetition starts its pipeline and stops it, or one would read ahead in another's time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(FLAGS.repetitions):
        for name, start in pipelines.items():
            with start() as pieces:
                seconds[name].append(seconds_per_piece(pieces, clock, warm_up, FLAGS.num_pieces))
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench(source: workers.EncodedSource, num_workers: int, records: str) -> dict[str, Any]:
    """Images a second per core of each pipeline, counted both ways; tf.data if `records` is given.

    Returns:
      `{"cores", "images", "image_size", "all_cores": {name: rate}, "cpu_time": {name: rate}}`.
    """
    size, image_size = FLAGS.piece_size, FLAGS.image_size
    ours = partial(our_pieces, source, size, image_size)
    all_cores: dict[str, Pipeline] = {"batchgrow": partial(ours, num_workers)}
    one_process: dict[str, Pipeline] = {"batchgrow": partial(ours, 0)}
    for dtype in ("float32", "uint8") if records else ():
        theirs = partial(tf_pieces, records, size, image_size, dtype)
        all_cores[f"tf.data {dtype}"] = partial(theirs, 0)
        one_process[f"tf.data {dtype}"] = partial(theirs, 1)
    warm_up = 4 * max(2, num_workers)
    wall = compare(all_cores, time.perf_counter, warm_up)
    cpu = compare(one_process, time.process_time, warm_up)
    return {
        "cores": num_workers,
        "images": len(source),
        "image_size": image_size,
        "all_cores": {name: size / seconds / num_workers for name, seconds in wall.items()},
        "cpu_time": {name: size / seconds for name, seconds in cpu.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as text: images a second per core, and ours as a multiple of theirs."""
    heads = ("all cores", "ours/this", "CPU time", "ours/this")
    lines = [f"{'images/s per core':20}" + "".join(f"{head:>12}" for head in heads)]
    for name in result["all_cores"]:
        line = f"{name:20}"
        for kind in ("all_cores", "cpu_time"):
            rate = result[kind][name]
            line += f"{rate:12.0f}{result[kind]['batchgrow'] / rate:12.2f}"
        lines.append(line)
    lines.append(
        f"{result['images']} pictures to {result['image_size']} x {result['image_size']}, "
        f"{result['cores']} cores, medians of {FLAGS.repetitions} interleaved repetitions"
    )
    return "\n".join(lines)


def _main(argv: list[str]) -> None:
    del argv
    source = sources.open_source("imagenet2012", FLAGS.split, FLAGS.data_dir, decode=False)
    num_workers = FLAGS.num_workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        records = os.path.join(folder, "records") if FLAGS.tf else ""
        if records:
            write_records(source, records)
        result = bench(source, num_workers, records)
    print(json.dumps(result) if FLAGS.json else table(result))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "tfds's folder with `imagenet2012`.", required=True)
    flags.DEFINE_string("split", "train", "Of the data set.")
    flags.DEFINE_integer("num_workers", 0, "Worker processes; 0 for the cores at hand.")
    flags.DEFINE_integer("image_size", 224, "Of the result, pixels.")
    flags.DEFINE_integer("piece_size", 64, "Images in a piece.")
    flags.DEFINE_integer("num_pieces", 20, "Pieces in a repetition.")
    flags.DEFINE_integer("repetitions", 7, "Of each pipeline.")
    flags.DEFINE_bool("tf", False, "Also the tf.data pipeline (pip install 'batchgrow[tf]').")
    flags.DEFINE_bool("json", False, "One line of JSON instead of the table.")
    app.run(_main)
