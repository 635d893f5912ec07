"""Checkpoints on `s3://`: supported by TensorStore and epath, not yet by Orbax."""

import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

PREFIXES = ("gs://", "s3://")
_gcs_kvstore = gcs_utils.get_kvstore_for_gcs


def teach_orbax() -> None:
    """Makes Orbax 0.12 treat `s3://` like `gs://`: no atomic rename, a driver of TensorStore.

    To be removed with https://github.com/google/orbax/pull/2739. Calling it again changes nothing.
    """
    paths: Any = gcs_utils
    paths._GCS_PATH_PREFIX = PREFIXES
    paths.get_kvstore_for_gcs = kvstore
    arrays: Any = tensorstore_utils
    arrays._use_gcs_driver = lambda path: path.startswith(PREFIXES)
    arrays._normalize_path = normalize


def kvstore(path: str) -> dict[str, Any]:
    """TensorStore's spec for a folder on an object store.

    >>> kvstore("s3://bucket/run")["driver"]
    's3'
    """
    if not path.startswith("s3://"):
        return _gcs_kvstore(path)
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
