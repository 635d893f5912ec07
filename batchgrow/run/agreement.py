"""Checks, before anything is compiled, that all processes are about to run the same."""

import json
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from batchgrow.experiment import Experiment
from batchgrow.names import flatten
from batchgrow.run import environment
from batchgrow.run.files import as_oserror, write_whole
from batchgrow.run.folder import FolderError

# Fields that may differ between the processes of one run.
OWN_TO_A_PROCESS = (
    "run.data_dir",
    "run.num_workers",
    "run.compilation_cache_dir",
    "run.progress",
    "run.tensorboard",
)
SHARED_SECONDS = 15.0  # a network file system may show a new file late
POLL_SECONDS = 0.2
SHOWN = 8  # differences in a message
SHOWN_CHARACTERS = 40  # of a value
NUM_EXAMPLES = 16  # that represent a data set without arrays


def check_agreement(
    facts: Mapping[str, str],
    remedy: str = "start all of them with the same config, data, workdir and version of batchgrow",
) -> None:
    """Raises on every process if the facts are not the same on all of them.

    Every process calls it. With one process it does nothing.

    Args:
      facts: by name, such as `recipe.learning_rate` or `data`. The message shows short values.
      remedy: what the message says to do.

    Raises:
      ValueError: with the facts that differ, and their values by process.
    """
    if jax.process_count() == 1:
        return
    short = {name: _shorten(value) for name, value in facts.items()}
    processes = [json.loads(text) for text in _gather(json.dumps(short).encode())]
    names = dict.fromkeys(name for process in processes for name in process)
    different = []
    for name in names:
        owners: dict[str, list[int]] = defaultdict(list)
        for index, process in enumerate(processes):
            owners[process.get(name, "missing")].append(index)
        if len(owners) > 1:
            parts = (f"{value} on {_numbers(indices)}" for value, indices in owners.items())
            different.append(f"{name} is {', '.join(parts)}")
    if not different:
        return
    more = [f"{len(different) - SHOWN} more"] if len(different) > SHOWN else []
    raise ValueError(f"the processes differ: {'; '.join(different[:SHOWN] + more)}; {remedy}")


def check_shared(folder: epath.Path) -> None:
    """Raises on every process if one of them does not see the run folder of process 0.

    Every process calls it, after process 0 has created the folder. With one process it does
    nothing.

    Raises:
      FolderError: if a process does not see the folder, or if process 0 cannot write there.
    """
    if jax.process_count() == 1:
        return
    path, nonce, written = folder, uuid.uuid4().bytes, True
    if jax.process_index() == 0:
        path = folder / f".shared.{nonce.hex()}"
        written = _is_written(path, nonce)
    # Later than the file: nobody looks for a file that is not there yet, which a network file
    # system would remember.
    first = _gather(nonce if written else b"")[0]
    if jax.process_index() != 0 and first:
        path = folder / f".shared.{first.hex()}"
    seen = [text == b"1" for text in _gather(b"1" if first and _sees(path, first) else b"0")]
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    if not first:
        raise FolderError(f"workdir {folder}: process 0 cannot write there")
    if not all(seen):
        blind = [index for index, saw in enumerate(seen) if not saw]
        raise FolderError(
            f"workdir {folder}: {_numbers(blind)} cannot see what process 0 writes there; all "
            "processes need the same folder, on a shared file system or an object store"
        )


def run_facts(
    experiment: Experiment, settings: Mapping[str, Any], folder: epath.Path
) -> dict[str, str]:
    """Returns what must be equal on all processes of a run, by name; empty for one process.

    Args:
      experiment: what this process is about to train.
      settings: the config of this process, as plain nested dicts.
      folder: the run folder of this process.
    """
    if jax.process_count() == 1:
        return {}
    fields = {k: str(v) for k, v in flatten(settings).items() if k not in OWN_TO_A_PROCESS}
    return fields | {
        "workdir": str(folder),
        "plan": json.dumps(experiment.plan.to_dict()),
        "train data": fingerprint(experiment.train_data),
        "test data": fingerprint(experiment.test_data),
        "versions": json.dumps(environment.versions()),
        "commit": str(environment.commit()),
    }


def all_agree(mine: bool) -> bool:
    """Whether `mine` is true on every process. Every process calls it."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())


def total(mine: int) -> int:
    """The sum of `mine` over all processes. Every process calls it."""
    if jax.process_count() == 1:
        return mine
    return int(multihost_utils.process_allgather(np.array(mine, np.int32)).sum())


def fingerprint(data: Any) -> str:
    """Returns the number of examples of a data set and a CRC-32 of its content.

    The content is all arrays of a data set that is in memory, else `NUM_EXAMPLES` examples.

    Args:
      data: a data set (batchgrow/data).
    """
    content = getattr(data, "arrays", None)
    if content is None:
        count = min(NUM_EXAMPLES, data.num_examples)
        content = data.gather(np.linspace(0, data.num_examples - 1, count).astype(np.int64))
    crc32 = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(content):
        array = np.ascontiguousarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        crc32 = zlib.crc32(array.view(np.uint8).reshape(-1).data, zlib.crc32(head.encode(), crc32))
    return f"{data.num_examples} examples, CRC-32 {crc32:08x}"


def _gather(mine: bytes) -> list[bytes]:
    """Returns the bytes of every process, by its index."""
    sizes = multihost_utils.process_allgather(np.array(len(mine), np.int32))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _shorten(value: str) -> str:
    """The value, or its beginning and a CRC-32 of all of it."""
    if len(value) <= SHOWN_CHARACTERS and value.isprintable():
        return value
    beginning = "".join(c if c.isprintable() else " " for c in value[: SHOWN_CHARACTERS - 20])
    return f"{beginning}... (CRC-32 {zlib.crc32(value.encode()):08x})"


def _numbers(indices: list[int]) -> str:
    some = ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
    return f"process{'es' if len(indices) > 1 else ''} {some}"


def _is_written(path: epath.Path, nonce: bytes) -> bool:
    try:
        write_whole(path, nonce)
    except OSError:
        return False
    return True


def _sees(path: epath.Path, nonce: bytes) -> bool:
    end = time.monotonic() + SHARED_SECONDS
    while True:
        try:
            with as_oserror():
                if path.read_bytes() == nonce:
                    return True
        except OSError:
            pass  # not there yet
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
