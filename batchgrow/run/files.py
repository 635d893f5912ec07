"""Files of a run folder, on a disk or on an object store (`gs://`, `s3://`), by `etils.epath`.

An object is put whole or not at all; it can neither be appended to, nor renamed, nor locked.
"""

import contextlib
import io
import os
import time
from collections.abc import Iterator

from etils import epath

# Stores take about one put a second of the same object; TensorBoard looks twice a minute.
PUT_SECONDS = 30.0


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is an object store's.

    >>> is_remote("gs://bucket/run"), is_remote("runs/digits")
    (True, False)
    """
    return "://" in os.fspath(path)


def write_whole(path: epath.Path, data: bytes) -> None:
    """Leaves the old file or the new one, whatever happens meanwhile.

    Raises:
      OSError: if it cannot be written; the old file stays.
    """
    if is_remote(path):
        with as_oserror():
            path.write_bytes(data)
        return
    # Through a second file: a full disk leaves the old one whole.
    fresh = path.parent / f"{path.name}.new"
    fresh.write_bytes(data)
    fresh.replace(path)


class Growing:
    """A file that is appended to.

    On a disk a part is there, synced, when `append` returns. An object is put anew, at most every
    `PUT_SECONDS` and on `flush`: what it lacks after a crash must be known from elsewhere.

    Args:
      path: of the file.
      content: what it is made to hold first.

    Raises:
      OSError: here and below, if the file cannot be written; what was there stays.
    """

    def __init__(self, path: epath.Path, content: bytes = b""):
        self._path = path
        self._whole = bytearray(content)
        self._time_put = time.monotonic()
        self._is_put = True
        with as_oserror():
            if not path.exists() or path.read_bytes() != content:
                write_whole(path, content)
        self._file = None if is_remote(path) else open(path, "ab", buffering=0)

    def append(self, data: bytes) -> None:
        """Adds to the end."""
        if self._file is not None:
            _write_all(self._file, data)
            os.fsync(self._file.fileno())
            return
        self._whole += data
        self._is_put = False
        if time.monotonic() - self._time_put >= PUT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all of it is there."""
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
    """Turns what stores raise (each client its own kinds) into OSError."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OSError(reason[0]) from error


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    while data:  # a disk that becomes full takes a part first, then raises
        data = data[file.write(data) :]
