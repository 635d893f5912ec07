"""The environment of a run, which is recorded with every result."""

import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "batchgrow")


def recorded(num_devices: int | None = None) -> dict[str, Any]:
    """Returns what is recorded beside a result: command, commit, versions and devices.

    Args:
      num_devices: the number of devices that were used; None: all of them.
    """
    return {
        "command": command(),
        "commit": commit(),
        "versions": versions(),
        "devices": devices(num_devices),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def devices(count: int | None = None) -> dict[str, Any]:
    """Platform, kind and number of the devices, and the number of processes.

    Args:
      count: the number of devices that were used; None: all of them.
    """
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count() if count is None else count,
        "processes": jax.process_count(),
    }


def commit() -> str | None:
    """The commit that this code was checked out at, "-dirty" if edited; None outside of git.

    Code that is installed below another repository is not tracked there and has no commit.
    """
    here = pathlib.Path(__file__)
    tracked = ["git", "ls-files", "--error-unmatch", here.name]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    options = {"cwd": here.parent, "capture_output": True, "text": True, "check": True}
    try:
        subprocess.run(tracked, **options)
        return subprocess.run(describe, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def command() -> str:
    """The command line of this process, as one would type it."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = (
        f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
    )
    return shlex.join([*program.split(), *sys.argv[1:]])
