"""The generated ImageNet: tfds reads it as its own, it repeats, and it can be learned."""

import functools
import io
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from batchgrow.data import jpeg
from batchgrow.data.worker_feed import WorkerFeed, evaluation_batches
from batchgrow.data.workers import JpegLoader
from experiments import make_fake_imagenet

NUM_CLASSES = 10


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    make_fake_imagenet.make(folder, 60, 40, NUM_CLASSES, seed=0)
    return folder


def open_split(data_dir, split):
    return tfds.data_source(
        "imagenet2012",
        split=split,
        data_dir=data_dir,
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},
    )


def test_tfds_reads_it_as_imagenet(data_dir):
    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    assert str(builder.version) == "5.1.0"
    assert builder.info.features["label"].num_classes == 1000
    assert builder.info.features["label"].names[0] == "n01440764"
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 60,
        "validation": 40,
    }
    example = open_split(data_dir, "validation")[0]
    assert set(example) == {"image", "label", "file_name"}
    assert example["image"][:2] == b"\xff\xd8"
    assert example["file_name"].startswith(b"ILSVRC2012_val_")


def test_every_example_is_there_once(data_dir):
    source = open_split(data_dir, "train")
    names = {source[i]["file_name"] for i in range(len(source))}
    assert len(names) == 60
    labels = [int(source[i]["label"]) for i in range(len(source))]
    np.testing.assert_array_equal(np.bincount(labels), [6] * NUM_CLASSES)


def test_examples_follow_from_the_seed():
    def images(seed, num_examples):
        pairs = make_fake_imagenet.examples("train", num_examples, NUM_CLASSES, seed)
        return [example["image"] for _, example in pairs]

    assert images(0, 3) == images(0, 5)[:3]
    assert images(0, 3) != images(1, 3)


def test_sizes_and_bytes_are_about_those_of_imagenet():
    pairs = list(make_fake_imagenet.examples("train", 120, NUM_CLASSES, seed=4))
    frames = np.array([jpeg._frame(example["image"])[:2] for _, example in pairs])
    assert 340 < frames[:, 0].mean() < 440 and 400 < frames[:, 1].mean() < 530
    assert 85_000 < np.mean([len(example["image"]) for _, example in pairs]) < 135_000


def test_the_kinds_of_jpeg_have_the_shares_of_imagenet():
    """Chroma 4:4:4, 4:2:0, 4:2:2 or none, and Exif, within four standard deviations."""
    rng, num_files = np.random.default_rng(0), 2000
    picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
    counts = Counter()
    for _ in range(num_files):
        with Image.open(io.BytesIO(make_fake_imagenet.encode(picture, rng))) as image:
            sampling = tuple(component[1:3] for component in image.layer)  # horizontal, vertical
            counts[sampling[0] if len(sampling) == 3 else "grey"] += 1
            counts["Exif"] += bool(image.getexif())
    shares = {(1, 1): 0.761, (2, 2): 0.203, (2, 1): 0.013, "grey": 0.023, "Exif": 0.032}
    assert counts.keys() == shares.keys()
    for kind, share in shares.items():
        deviation = (share * (1 - share) / num_files) ** 0.5
        assert abs(counts[kind] / num_files - share) < 4 * deviation, kind


def test_classes_can_be_learned(data_dir):
    """Nearest class mean on 8x8 thumbnails: ten classes, chance is 10%."""

    def thumbnails(split):
        source = open_split(data_dir, split)
        crop = functools.partial(jpeg.evaluation_crop, image_size=8)
        with WorkerFeed(JpegLoader(source, crop, image_size=8)) as feed:
            batches = list(evaluation_batches(feed, len(source), batch_size=20))
        examples = [batch["examples"] for batch in batches]
        images = np.concatenate([x["image"] for x in examples]).astype(float)
        return images.reshape(len(images), -1), np.concatenate([x["label"] for x in examples])

    images, labels = thumbnails("train")
    means = np.stack([images[labels == label].mean(0) for label in range(NUM_CLASSES)])
    images, labels = thumbnails("validation")
    nearest = np.argmin(((images[:, None] - means) ** 2).sum(-1), axis=1)
    assert np.mean(nearest == labels) > 0.6


def test_it_refuses_to_write_over_a_data_set(data_dir):
    with pytest.raises(ValueError, match="exists; choose another folder"):
        make_fake_imagenet.make(data_dir, 1, 1, NUM_CLASSES, seed=0)
    with pytest.raises(ValueError, match="num_classes=1001"):
        make_fake_imagenet.make(data_dir, 1, 1, 1001, seed=0)


@pytest.mark.slow
def test_the_input_benchmark_runs_without_tensorflow(data_dir):
    arguments = ["--num_workers=1", "--num_batches=4", "--repetitions=1", "--batch_size=32"]
    run = subprocess.run(
        [sys.executable, "-m", "experiments.bench_input", f"--data_dir={data_dir}", "--json"]
        + [*arguments, "--image_size=64"],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    (row,) = result["rows"]
    assert row["pipeline"] == "batchgrow" and row["ours_over_this"] == 1
    assert row["images_per_wall_second_and_core"] > 0 and row["images_per_cpu_second"] > 0
    assert result["command"].startswith("python -m experiments.bench_input --data_dir=")
    assert result["versions"]["jax"] and result["commit"]
