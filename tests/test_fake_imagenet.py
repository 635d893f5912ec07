"""The generated ImageNet: tfds reads it as its own, it repeats, and it can be learned."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from batchgrow.data import imagenet, workers
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
    frames = np.array([imagenet._frame(example["image"])[:2] for _, example in pairs])
    assert 340 < frames[:, 0].mean() < 440 and 400 < frames[:, 1].mean() < 530
    assert 85_000 < np.mean([len(example["image"]) for _, example in pairs]) < 135_000


def test_classes_can_be_learned(data_dir):
    """Nearest class mean on 8x8 thumbnails: ten classes, chance is 10%."""

    def thumbnails(split):
        pieces = workers.evaluation_pieces(
            open_split(data_dir, split),
            functools.partial(imagenet.evaluation_crop, image_size=8),
            image_size=8,
            piece_size=20,
        )
        pieces = list(pieces)
        images = np.concatenate([piece["image"] for piece in pieces]).astype(float)
        return images.reshape(len(images), -1), np.concatenate([p["label"] for p in pieces])

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
    arguments = ["--num_workers=1", "--num_pieces=4", "--repetitions=1", "--piece_size=32"]
    run = subprocess.run(
        [sys.executable, "-m", "experiments.bench_input", f"--data_dir={data_dir}", "--json"]
        + [*arguments, "--image_size=64"],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["wall"]["batchgrow"] > 0 and result["processor"]["batchgrow"] > 0
