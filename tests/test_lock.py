""".ci/requirements.txt has every package of the tests, each with one version and its hashes."""

import pathlib
import re
import runpy
from unittest import mock

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / ".ci/requirements.txt").read_text()
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", TEXT, re.M))


def test_what_setup_asks_for_is_pinned_to_a_version_that_fits():
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    asked = setup.call_args.kwargs
    for line in [*asked["install_requires"], *asked["extras_require"]["test"], "setuptools>=77"]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in PINNED, f"{name} is not in .ci/requirements.txt; renew it (CONTRIBUTING.md)"
        assert requirement.specifier.contains(PINNED[name]), f"{line}, but {PINNED[name]} is pinned"


def test_every_package_has_hashes_and_none_names_a_host():
    assert len(re.findall(r"^[\w.-]+==", TEXT, re.M)) == len(PINNED) > 50
    assert not re.findall(r"^(?!#|    |[\w.-]+==).+$", TEXT, re.M)  # no options
    assert "//" not in TEXT
