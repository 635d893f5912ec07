"""From a config to the data: where training batches come from, and the test set."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from batchgrow import parallel
from batchgrow.config import Config
from batchgrow.data import imagenet
from batchgrow.data.feed import (
    Feed,
    HostBatch,
    PieceFeed,
    ResidentFeed,
    Share,
    StreamedFeed,
    padded_batches,
)
from batchgrow.data.sources import load_images, open_source
from batchgrow.data.stream import Stream
from batchgrow.data.workers import PieceLoader, evaluation_pieces
from batchgrow.programs import split_evenly
from batchgrow.plan.plan import Schedule

TestBatches = Callable[[], Iterable[Any]]


def open_data(
    config: Config, schedule: Schedule, mesh: Mesh
) -> tuple[Feed, TestBatches, HostBatch]:
    """The training feed, the test batches on the devices, and host arrays of their shapes.

    Raises:
      ValueError: for data that is not there, or of another size than the config says.
    """
    if config.data.augment == "random_resized_crop":
        return _open_jpegs(config, schedule, mesh)
    data, data_dir = config.data, config.run.data_dir
    train = load_images(data.name, data.train_split, data_dir)
    test = load_images(data.name, data.test_split, data_dir)
    for split, images in (("train", train), ("test", test)):
        _check_size(config, split, len(images))
        if images.image.shape[1:] != tuple(data.image_shape):
            raise ValueError(
                f"data.image_shape is {tuple(data.image_shape)}, but {data.name} has images of "
                f"{images.image.shape[1:]}; set the field to that"
            )
        _check_labels(config, split, images.label)
    feed = (ResidentFeed if config.run.resident else StreamedFeed)(train, config.seed)
    on_host = [
        split_evenly(batch, mesh) for batch in padded_batches(test, _eval_size(config, mesh))
    ]
    on_devices = [parallel.shard(batch, mesh) for batch in on_host]
    return feed, lambda: on_devices, on_host[0]


def _open_jpegs(
    config: Config, schedule: Schedule, mesh: Mesh
) -> tuple[Feed, TestBatches, HostBatch]:
    """JPEGs that worker processes decode, for training and for testing."""
    data, image_size = config.data, config.data.image_shape[0]
    sources = {}
    for split in ("train", "test"):
        name = data[f"{split}_split"]
        sources[split] = open_source(data.name, name, config.run.data_dir, decode=False)
        _check_size(config, split, len(sources[split]))
    share = _share(config, schedule, mesh)
    load = PieceLoader(
        source=sources["train"],
        positions=share,
        indices=Stream(data.num_train_examples, config.seed).indices,
        crop=partial(imagenet.training_crop, seed=config.seed),
        image_size=image_size,
        on_bad_record=data.on_bad_record,
        num_classes=config.model.num_classes,
    )
    num_local = len(parallel.local_device_slots(mesh))

    def pieces() -> Iterator[HostBatch]:
        for piece in evaluation_pieces(
            sources["test"],
            partial(imagenet.evaluation_crop, image_size=image_size),
            image_size=image_size,
            piece_size=_eval_size(config, mesh) // jax.process_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.run.num_workers,
            num_classes=config.model.num_classes,
        ):
            yield {k: v.reshape(num_local, -1, *v.shape[1:]) for k, v in piece.items()}

    def on_devices() -> Iterator[Any]:
        return (parallel.shard(piece, mesh) for piece in pieces())

    shape = (num_local, _eval_size(config, mesh) // mesh.size)
    like = {
        "image": np.broadcast_to(np.uint8(0), (*shape, image_size, image_size, 3)),
        "label": np.zeros(shape, np.int32),
        "mask": np.zeros(shape, np.float32),
    }
    return PieceFeed(load, share, config.run.num_workers), on_devices, like


def _share(config: Config, schedule: Schedule, mesh: Mesh) -> Share:
    """The positions that this process consumes, by the layout of each phase."""
    limit = config.run.max_per_device_batch_size
    slots = parallel.local_device_slots(mesh)
    if slots != list(range(slots[0], slots[0] + len(slots))):
        raise ValueError(
            f"this process drives the devices {slots} of {mesh.size}, which are no neighbours; "
            "streamed data needs them to be"
        )
    if limit == "auto" and jax.process_count() > 1:
        raise ValueError(
            "run.max_per_device_batch_size is 'auto', but with several processes that stream their "
            "data it must be a number: which examples a process reads depends on it"
        )
    if limit == "auto":  # one process reads every position in order, whatever the passes
        sizes = [phase.batch_size for phase in schedule.phases]
    else:
        sizes = [
            _pass_size(phase.batch_size, mesh.size, config.ghost_batch_size, int(limit))
            for phase in schedule.phases
        ]
    runs = [size * len(slots) // mesh.size for size in sizes]
    offsets = [size * slots[0] // mesh.size for size in sizes]
    return Share(
        start_examples=tuple(phase.start_examples for phase in schedule.phases),
        pass_size=tuple(sizes),
        first=slots[0],
        count=len(slots),
        num_devices=mesh.size,
        piece_size=math.gcd(config.ghost_batch_size, *runs, *offsets),
        end_examples=schedule.end_examples,
    )


def _pass_size(batch_size: int, num_devices: int, ghost_batch_size: int, limit: int) -> int:
    """Examples of one pass of all devices; for a batch that these do not fit, of any such pass.

    `check_layouts` has refused such a batch unless its phase is over, so that nothing reads it.
    """
    try:
        layout = parallel.choose_layout(batch_size, num_devices, ghost_batch_size, limit)
    except ValueError:
        return num_devices * ghost_batch_size
    return batch_size // layout.num_microbatches


def _check_size(config: Config, split: str, found: int) -> None:
    expected = config.data[f"num_{split}_examples"]
    if found != expected:
        raise ValueError(
            f"data.num_{split}_examples is {expected}, but {config.data.name} has {found} examples "
            f"in its {split} split; set the field to that, or point run.data_dir to the right data"
        )


def _check_labels(config: Config, split: str, labels: np.ndarray) -> None:
    """Of data in memory; those of a stream are checked as they are read."""
    least, most = labels.min(), labels.max()
    if least < 0:
        raise ValueError(
            f"model.num_classes is {config.model.num_classes}, but the {split} split of "
            f"{config.data.name} has a label {least}; take a split whose examples are labelled"
        )
    if most >= config.model.num_classes:
        raise ValueError(
            f"model.num_classes is {config.model.num_classes}, but {config.data.name} has a label "
            f"{most}; set the field to {most + 1} or more"
        )


def _eval_size(config: Config, mesh: Mesh) -> int:
    """The global size of an evaluation batch: whole devices."""
    return -(-config.run.eval_batch_size // mesh.size) * mesh.size
