"""Opens the data sets of a config, and reads the sizes of the model from them."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from batchgrow.config.kinds import ConfigDict
from batchgrow.config.task import inputs_of
from batchgrow.data import jpeg
from batchgrow.data.catalog import is_at_hand, open_part
from batchgrow.data.datasets import Dataset, InMemory, SourceDataset
from batchgrow.data.jpeg_dataset import JpegDataset
from batchgrow.data.prepared import open_source
from batchgrow.data.records import ON_BAD_RECORD
from batchgrow.data.source import Part, Source
from batchgrow.tasks import Task

log = logging.getLogger(__name__)
NUM_CHECKED = 64  # examples of a source, from its first to its last
FROM_BOTH = ("num_classes", "outputs", "vocab_size")  # facts that must cover training and test data


def open_data(config: ConfigDict, part: Part, *, to_read: bool = True) -> Dataset:
    """Returns the "train" or "test" data of a config, as its task reads them.

    Args:
      to_read: whether examples will be read. If not, encoded images need not be there: the config
        says their number and their size.

    Raises:
      ValueError: if the data set does not exist, or has another size than the config says.
    """
    if config.run.input == "workers":
        found: Dataset = _open_jpegs(config, part, to_read)
    else:
        found = open_part(source_of(config), part)
    expected = config.data[f"num_{part}_examples"]
    if expected is not None and found.num_examples != expected:
        raise ValueError(
            f"data.num_{part}_examples is {expected}, but {config.data.name} has "
            f"{found.num_examples} examples in its {part} split; set the field to that or to None, "
            "or point run.data_dir to the right data"
        )
    return found


def num_examples_of(config: ConfigDict) -> int:
    """Returns N: the size of the training set, or the config's number if opening the set is slow.

    Raises:
      ValueError: as `open_data`, if the data have another size than the config says.
    """
    said = config.data.num_train_examples
    if said is not None and not is_at_hand(source_of(config)):
        return said
    return open_data(config, "train").num_examples


def source_of(config: ConfigDict) -> Source:
    """The fields of `config.data` as plain values, with what the task reads.

    Raises:
      ValueError: for an unknown task.
    """
    data = config.data
    known = ("name", "train_split", "test_split", "test_share", "context", "tokens", "image_size")
    fields = {name: data[name] for name in (*known, "target", "columns") if name in data}
    return Source(
        **fields,
        data_dir=config.run.data_dir,
        in_memory=config.run.input == "resident",
        inputs=inputs_of(config),
    )


def _open_jpegs(config: ConfigDict, part: Part, to_read: bool) -> JpegDataset:
    data, is_training = config.data, part == "train"
    if data.on_bad_record not in ON_BAD_RECORD:
        raise ValueError(
            f"unknown data.on_bad_record {data.on_bad_record!r}; choose {', '.join(ON_BAD_RECORD)}"
        )
    if data.test_share is not None:
        raise ValueError(
            f"data.test_share {data.test_share}: worker processes read splits as they are; set it "
            "to None, and the parts by data.train_split and data.test_split, such as train[:9000]"
        )
    if (config.run.updates_per_dispatch or 1) > 1:
        raise ValueError(
            f"run.updates_per_dispatch {config.run.updates_per_dispatch}: worker processes feed "
            "one update at a time; set it to None or 1"
        )
    for name, value in (
        ("data.image_size", data.image_size),
        ("model.num_classes", config.model.get("num_classes")),
    ):
        if value is None or value < 1:
            raise ValueError(
                f"{name} is {value}; set it to 1 or more, because encoded images are not read "
                "before training"
            )
    crop: Any = partial(jpeg.evaluation_crop, image_size=data.image_size)
    if is_training:
        crop = partial(jpeg.training_crop, seed=config.seed)
    name, split = data.name.removeprefix("tfds:"), data[f"{part}_split"]
    num_examples = data[f"num_{part}_examples"]
    source: Any = range(num_examples or 0)
    if to_read or num_examples is None:
        source = open_source(name, split, config.run.data_dir, decode=False)
    return JpegDataset(
        source,
        crop,
        data.image_size,
        config.model.num_classes,
        data.on_bad_record if is_training else "stop",
    )


def model_facts(train_data: Dataset, test_data: Dataset | None = None) -> dict[str, Any]:
    """Returns the fields of model and task that the data determine (see `datasets.Dataset`)."""
    facts = dict(getattr(train_data, "facts", {}))
    others: Mapping[str, Any] = getattr(test_data, "facts", {})
    known, found = facts.get("num_classes"), others.get("num_classes")
    if known is not None and found is not None and known < found:
        log.warning(
            "the test data have a label %d, and the training data only labels up to %d; correct "
            "the labels if that is a mistake",
            found - 1,
            known - 1,
        )
    for name in FROM_BOTH:
        if name in facts and name in others:
            facts[name] = max(facts[name], others[name])
    return facts


def check_data(task: Task, data: Dataset, part: Part) -> None:
    """Lets the task check data that are held in memory, or `NUM_CHECKED` examples of a source.

    Raises:
      ValueError: if the task cannot train on them.
    """
    check = getattr(task, "check", None)
    if check is not None and isinstance(data, InMemory):
        check(data.arrays, part)
    elif check is not None and isinstance(data, SourceDataset):
        some = np.linspace(0, data.num_examples - 1, min(data.num_examples, NUM_CHECKED))
        check(data.gather(some.astype(np.int64)), part)
