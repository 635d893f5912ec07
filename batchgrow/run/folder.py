"""The run folder: claimed by one run at a time, and for one config only."""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from batchgrow.run.files import is_remote, write_whole

log = logging.getLogger(__name__)
Config = dict[str, Any]

# Fields under this key say how a run is executed; its trajectory does not depend on them.
FREE = "run"


class FolderError(ValueError):
    """The run folder cannot be used as asked; the message says why and what to do."""


@contextlib.contextmanager
def claim(workdir: str, *, is_writer: bool) -> Iterator[epath.Path]:
    """The folder, made if need be, and locked against a second run while the context lasts.

    Args:
      workdir: a local path or an object store's (`gs://`, `s3://`). The latter know no locks: two
        runs there are not refused.
      is_writer: whether this process writes (process 0).

    Raises:
      FolderError: if `workdir` is empty, cannot be written, or another run holds it.
    """
    if not workdir:
        raise FolderError("workdir is empty; name a folder for the run: --workdir=runs/NAME")
    if not is_remote(workdir):
        workdir = os.path.abspath(workdir)
    folder = epath.Path(workdir)
    if not is_writer:
        yield folder
        return
    with contextlib.ExitStack() as stack:
        try:
            if is_remote(workdir):
                # Finds out whether it can be written. No mkdir: that could make a bucket.
                write_whole(folder / ".lock", b"")
            else:
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(folder / ".lock", "w"))
        except ImportError as error:
            raise FolderError(
                f"workdir {workdir}: {error}; pip install -e '.[{workdir[:2]}]'"
            ) from error
        except OSError as error:
            raise FolderError(
                f"workdir {workdir}: cannot be written ({error.strerror or error}); choose another "
                "folder, or see to its permissions"
            ) from error
        try:
            # The kernel frees the lock when the process ends, however it ends.
            if not is_remote(workdir):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(
                f"workdir {workdir}: another run is using it; wait for it or take another folder"
            ) from error
        yield folder


def check_config(folder: epath.Path, before: Config, now: Config, *, override: bool) -> None:
    """Refuses a folder that holds the run of another config.

    Args:
      folder: the run folder.
      before: the config of the run in it, as plain nested dicts or by dotted name.
      now: of the run to start, likewise.
      override: accept other values under `run`, which cannot change the trajectory.

    Raises:
      FolderError: with every field that differs.
    """
    before, now = flatten(before), flatten(json.loads(json.dumps(now)))
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    fixed = [k for k in changed if k in trajectory_fields(dict.fromkeys(changed))]
    if not changed or (override and not fixed):
        return
    shown = fixed or changed
    difference = ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in shown)
    remedy = (
        "it changes the trajectory, so take another --workdir or the old value"
        if fixed
        else "it cannot change the trajectory; add --override_config to go on with it"
    )
    raise FolderError(f"workdir {folder} holds a run with another config ({difference}); {remedy}")


def trajectory_fields(config: Config) -> Config:
    """The fields that a trajectory depends on, by dotted name.

    >>> trajectory_fields({"seed": 0, "run": {"num_devices": 4}})
    {'seed': 0}
    """
    return {k: v for k, v in flatten(config).items() if not k.startswith(FREE + ".")}


def read_json(path: epath.Path) -> Any:
    """What `write_json` wrote; None if the file is not there, or damaged (with a warning)."""
    try:
        return json.loads(path.read_bytes()) if path.exists() else None
    except ValueError as error:
        log.warning("%s is damaged (%s); it is written again", path, error)
        return None


def write_json(path: epath.Path, value: Any) -> None:
    """Writes JSON, or raises OSError and leaves the old file as it is."""
    write_whole(path, f"{json.dumps(value, indent=2)}\n".encode())


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name.

    >>> flatten({"seed": 0, "run": {"num_devices": 4}})
    {'seed': 0, 'run.num_devices': 4}
    """
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
