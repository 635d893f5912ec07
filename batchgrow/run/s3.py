"""Checkpoints on `s3://`: supported by TensorStore and epath, not yet by Orbax."""

import importlib
import importlib.metadata
import os
from typing import Any

from batchgrow.run.folder import FolderError

# The version of orbax-checkpoint whose private modules are as expected here; setup.py pins it for
# the extra "s3". In 0.12.7 and before, the functions have other names.
VERSION = "0.12.8"
PREFIXES = ("gs://", "s3://")
PRIVATE = {
    "orbax.checkpoint._src.path.gcs_utils": ("_GCS_PATH_PREFIX", "get_kvstore_for_gcs"),
    "orbax.checkpoint._src.serialization.tensorstore_utils": ("_use_gcs_driver", "_normalize_path"),
}


def teach_orbax() -> None:
    """Makes Orbax treat `s3://` like `gs://`: no atomic rename, a driver of TensorStore.

    To be removed with https://github.com/google/orbax/pull/2739. Calling it again changes nothing.

    Raises:
      FolderError: for another version of Orbax than `VERSION`.
    """
    version = importlib.metadata.version("orbax-checkpoint")
    if version != VERSION:
        raise _unknown(version, "this version is not known here")
    try:
        modules: list[Any] = [importlib.import_module(name) for name in PRIVATE]
    except ImportError as error:
        raise _unknown(version, str(error)) from error
    for module, names in zip(modules, PRIVATE.values(), strict=True):
        for name in names:
            if not hasattr(module, name):
                raise _unknown(version, f"it has no {name}")
    paths, arrays = modules
    if paths._GCS_PATH_PREFIX == PREFIXES:
        return
    kvstore_of_gcs = paths.get_kvstore_for_gcs
    paths._GCS_PATH_PREFIX = PREFIXES
    paths.get_kvstore_for_gcs = lambda path: (
        kvstore(path) if path.startswith("s3://") else kvstore_of_gcs(path)
    )
    arrays._use_gcs_driver = lambda path: path.startswith(PREFIXES)
    arrays._normalize_path = normalize


def _unknown(version: str, reason: str) -> FolderError:
    return FolderError(
        f"checkpoints on s3:// need orbax-checkpoint {VERSION}, and {version} is installed "
        f"({reason}); pip install orbax-checkpoint=={VERSION}, or use gs:// or a disk"
    )


def kvstore(path: str) -> dict[str, Any]:
    """TensorStore's spec for a folder on `s3://`.

    >>> kvstore("s3://bucket/run")["driver"]
    's3'
    """
    bucket, _, folder = path.removeprefix("s3://").partition("/")
    spec = {"driver": "s3", "bucket": bucket, "path": folder}
    # For stores other than Amazon's: s3fs reads these variables by itself, TensorStore does not.
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
    return spec


def normalize(path: str) -> str:
    """The path without double slashes, except those of the scheme.

    >>> normalize("s3://bucket//run/"), normalize("/runs//digits/")
    ('s3://bucket/run', '/runs/digits')
    """
    scheme, mark, rest = path.rpartition("://")
    return scheme + mark + os.path.normpath(rest)
