"""Files of a run folder, on a disk or on an object store (`gs://`, `s3://`), by `etils.epath`.

An object is written as a whole or not at all. It can neither be appended to, renamed nor locked.
"""

import contextlib
import io
import os
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from batchgrow.errors import first_line

# Stores accept about one put per second of the same object; TensorBoard looks twice a minute.
PUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 22


class Extent(NamedTuple):
    """The beginning of a file: the number of bytes and their CRC-32."""

    size: int = 0
    crc32: int = 0


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is on an object store.

    >>> is_remote("gs://bucket/run"), is_remote("runs/digits")
    (True, False)
    """
    return "://" in os.fspath(path)


def write_whole(path: epath.Path, data: bytes) -> None:
    """Replaces a file. If the process is killed, it has either the old or the new content.

    On a disk the new content is not synced, so that a loss of power may leave neither.

    Raises:
      OSError: if it cannot be written; the old file stays.
    """
    if is_remote(path):
        with as_oserror():
            path.write_bytes(data)
        return
    # On a full disk writing the second file fails, and the first one stays whole.
    fresh = path.parent / f"{path.name}.new"
    if fresh.is_dir() and not os.path.islink(fresh):
        raise OSError(f"{fresh} is a folder; remove it")
    fresh.write_bytes(data)
    fresh.replace(path)


def holds(path: epath.Path, extent: Extent) -> bool:
    """Whether a file begins with what `extent` describes.

    Raises:
      OSError: if the file exists and cannot be read.
    """
    with as_oserror():
        if extent.size and not path.exists():
            return False
        size, crc32 = 0, 0
        for part in _parts(path, extent.size):
            size, crc32 = size + len(part), zlib.crc32(part, crc32)
    return Extent(size, crc32) == extent


def copy(source: epath.Path, target: epath.Path, size: int) -> None:
    """Copies the first `size` bytes of a file to a path where there is none.

    Raises:
      OSError: if they cannot be read or written.
    """
    with as_oserror(), target.open("wb") as file:
        for part in _parts(source, size):
            file.write(part)


def _parts(path: epath.Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, or all if it is shorter."""
    if not size:
        return
    with path.open("rb") as file:
        while size and (part := file.read(min(size, CHUNK_BYTES))):
            yield part
            size -= len(part)


def unused(folder: epath.Path, name: str) -> epath.Path:
    """A path in `folder` that does not exist: `name`, or `name` and a number."""
    paths = (folder / f"{name}{n or ''}" for n in range(100_000))
    return next(path for path in paths if not path.exists())


def cannot_write(folder: epath.Path, what: str, reason: str) -> OSError:
    """The error, in one line, of a run that cannot write to its folder any more."""
    full = ("No space left", "too large", "quota")
    if not is_remote(folder) and not folder.exists():
        remedy = "the folder was removed during the run; put it back"
    elif any(words in reason for words in full):
        remedy = "free space"
    else:
        remedy = "check the disk and the permissions of the folder"
    return OSError(
        f"{folder}: {what} could not be written ({reason}); {remedy} and start the same command "
        "again; it continues from the last complete checkpoint"
    )


class Growing:
    """A file that is appended to.

    On a disk, data is written and synced when `append` returns. An object is uploaded as a
    whole, at most every `PUT_SECONDS`, on `flush` and on `close`. A crash loses what was not yet
    uploaded.

    Args:
      path: the path of the file, which is created if it does not exist.
      extent: the beginning of the file that stays (see `holds`); the rest is cut off.

    Attributes:
      extent: the extent of the whole file, including data that is not yet uploaded.

    Raises:
      OSError: here and in the methods, if the file cannot be written.
    """

    def __init__(self, path: epath.Path, extent: Extent):
        self.extent = extent
        self._path = path
        self._file, self._whole, self._is_put = None, bytearray(), True
        if not is_remote(path):
            self._file = open(path, "ab", buffering=0)
            self._file.truncate(extent.size)
            return
        with as_oserror():
            before = path.read_bytes() if path.exists() else None
        self._whole += (before or b"")[: extent.size]
        self._time_put, self._is_put = time.monotonic(), before == self._whole
        self.flush()

    def append(self, data: bytes) -> None:
        """Appends data to the file."""
        self.extent = Extent(self.extent.size + len(data), zlib.crc32(data, self.extent.crc32))
        if self._file is not None:
            _write_all(self._file, data)
            os.fsync(self._file.fileno())
            return
        self._whole += data
        self._is_put = False
        if time.monotonic() - self._time_put >= PUT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when everything is written."""
        if not self._is_put:
            write_whole(self._path, bytes(self._whole))
            self._time_put, self._is_put = time.monotonic(), True

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def as_oserror() -> Iterator[None]:
    """Turns errors of stores into OSError. Each client raises its own kinds."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise OSError(first_line(error)) from error


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    while data:  # A disk that becomes full first takes a part and then raises an error.
        data = data[file.write(data) :]
