"""The run folder: used by one run at a time, and for one config only."""

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from batchgrow.names import flatten
from batchgrow.run.files import as_oserror, is_remote, write_whole

log = logging.getLogger(__name__)
Config = dict[str, Any]

# Of task.json and of the checkpoints. Write task.json before config.json: a folder that has only
# the latter counts as one of version 0.1.
FORMAT = 2
# Fields under this key say how a run is executed; its trajectory does not depend on them beyond
# rounding, except that worker processes decode and crop images in a way of their own.
FREE = "run"
INPUT, DECODED_BY_WORKERS = "run.input", "workers"


class FolderError(ValueError):
    """The run folder cannot be used as asked; the message says why and what to do."""


def run_folder(workdir: str) -> epath.Path:
    """The folder that `workdir` names: an absolute path, or one on an object store.

    Raises:
      FolderError: if it is empty, or `~` cannot be expanded.
    """
    if not workdir:
        raise FolderError("workdir is empty; name a folder for the run: --workdir=runs/NAME")
    if is_remote(workdir):
        return epath.Path(workdir)
    expanded = os.path.expanduser(workdir)
    if expanded.startswith("~"):
        raise FolderError(f"workdir {workdir}: there is no such user; write ./{workdir} or a path")
    return epath.Path(os.path.abspath(expanded))


@contextlib.contextmanager
def claim(workdir: str, *, is_writer: bool) -> Iterator[epath.Path]:
    """The folder, created if necessary, and locked against a second run while the context lasts.

    Args:
      workdir: a local path or one on an object store (`gs://`, `s3://`). Object stores have no
        locks: a second run there is not refused.
      is_writer: whether this process writes (process 0).

    Raises:
      FolderError: if `workdir` is empty, cannot be written, is used by another run, or holds a run
        of another version.
    """
    folder = run_folder(workdir)
    with contextlib.ExitStack() as stack:
        if is_writer:
            _lock(folder, stack)
        check_format(folder)
        yield folder


def _lock(folder: epath.Path, stack: contextlib.ExitStack) -> None:
    lock = folder / ".lock"
    try:
        if is_remote(folder):
            # Shows whether it can be written. No mkdir: that could create a bucket.
            write_whole(lock, b"")
            return
        folder.mkdir(parents=True, exist_ok=True)
        # Neither follows a link nor empties a file.
        number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = stack.enter_context(open(number, "w"))
    except ImportError as error:
        raise FolderError(
            f"workdir {folder}: {error}; pip install -e '.[{os.fspath(folder)[:2]}]'"
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(lock):
            raise FolderError(f"{lock} is a symbolic link; remove it") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            file = next(place for place in (folder, *folder.parents) if place.exists())
            raise FolderError(
                f"workdir {folder}: {file} is a file, not a folder; choose another workdir"
            ) from error
        raise FolderError(
            f"workdir {folder}: cannot be written ({error.strerror or error}); choose another "
            "folder, or change its permissions"
        ) from error
    try:
        # The kernel releases the lock when the process ends, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FolderError(
            f"workdir {folder}: another run is using it; wait for it or choose another folder"
        ) from error


def check_format(folder: epath.Path) -> None:
    """Refuses a folder that another version of batchgrow has written.

    Raises:
      FolderError: if another version has written it.
    """
    task = folder / "task.json"
    if not task.exists():
        if (folder / "config.json").exists():
            raise FolderError(
                f"workdir {folder} holds a run of batchgrow 0.1 (it has no task.json); continue "
                "it with that version, or choose another workdir"
            )
        return
    facts = read_json(task)
    if facts is not None:
        check_number(folder, facts.get("format"))


def check_number(folder: epath.Path, number: Any) -> None:
    """Refuses another format number than `FORMAT`.

    Raises:
      FolderError: if the number is another one.
    """
    if number != FORMAT:
        raise FolderError(
            f"{folder} is of another version of batchgrow (format {number}, this version has "
            f"format {FORMAT}); continue with that version, or choose another workdir"
        )


def check_config(
    folder: epath.Path,
    before: Config,
    now: Config,
    *,
    override: bool,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Refuses a folder that holds the run of another config.

    Args:
      folder: the run folder.
      before: the config of the run in it, as plain nested dicts or by dotted name.
      now: the config of the run to start, in the same form.
      override: accept other values under `run`, which cannot change the trajectory. A `run.input`
        from or to "workers" is not accepted.
      defaults: values by dotted name. A field that only `now` has counts as having this value
        before. Only give those with which a run is the same as before the field existed.

    Raises:
      FolderError: with every field that differs.
    """
    defaults, now = (flatten(json.loads(json.dumps(values or {}))) for values in (defaults, now))
    before = {name: defaults[name] for name in defaults.keys() & now.keys()} | flatten(before)
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    fixed = list(trajectory_fields(dict.fromkeys(changed)))
    if INPUT in changed and DECODED_BY_WORKERS in (before.get(INPUT), now.get(INPUT)):
        fixed.append(INPUT)
    if not changed or (override and not fixed):
        return
    shown = fixed or changed
    difference = ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in shown)
    remedy = (
        "it changes the trajectory, so take another --workdir or the old value"
        if fixed
        else "it cannot change the trajectory; add --override_config to continue with it"
    )
    raise FolderError(f"workdir {folder} holds a run with another config ({difference}); {remedy}")


def trajectory_fields(config: Config) -> Config:
    """The fields that a trajectory depends on, by dotted name.

    >>> trajectory_fields({"seed": 0, "run": {"num_devices": 4}})
    {'seed': 0}
    """
    return {k: v for k, v in flatten(config).items() if not k.startswith(FREE + ".")}


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """Returns what `write_json` wrote; None if the file is missing, or damaged (with a warning).

    Raises:
      FolderError: if the file exists and cannot be read.
    """
    try:
        with as_oserror():
            text = path.read_bytes() if path.exists() else None
    except OSError as error:
        raise FolderError(
            f"{path} cannot be read ({error.strerror or error}); remove it or make it readable"
        ) from error
    if text is None:
        return None
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            return value
        reason: Any = "it is not a JSON object"
    except (ValueError, RecursionError) as error:
        reason = error
    log.warning("%s is damaged (%s); it is written again", path, reason)
    return None


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes JSON.

    Raises:
      OSError: if it cannot be written; the old file stays.
    """
    try:
        write_whole(path, f"{json.dumps(value, indent=2)}\n".encode())
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror or error})") from error
