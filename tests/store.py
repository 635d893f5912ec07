"""An object store for tests: a folder of this disk behind `s3://`, used as a store is.

`fsspec` serves the files, TensorStore the arrays, both from the same folder.
"""

import pathlib
from typing import Any

import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from batchgrow.run import s3


class Store(DirFileSystem):
    """Objects in a folder: no directory is made by itself, nothing is moved in place."""

    def _join(self, path: Any) -> Any:
        return super()._join(path.removeprefix("s3://") if isinstance(path, str) else path)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        assert "a" not in mode, f"{path}: a store cannot append"
        return super().open(path, mode, **options)

    def mkdir(self, path: str, **_: Any) -> None:
        pass

    makedirs = mkdir


@pytest.fixture
def bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder behind `s3://bucket`."""
    store = Store(str(tmp_path), LocalFileSystem(auto_mkdir=True))

    def kvstore(path: str) -> dict[str, str]:
        return {"driver": "file", "path": f"{tmp_path}/{path.removeprefix('s3://')}"}

    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: store)
    monkeypatch.setattr(s3, "kvstore", kvstore)
    for module, name in (  # what `teach_orbax` sets
        (gcs_utils, "_GCS_PATH_PREFIX"),
        (gcs_utils, "get_kvstore_for_gcs"),
        (tensorstore_utils, "_use_gcs_driver"),
        (tensorstore_utils, "_normalize_path"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    return tmp_path / "bucket"
