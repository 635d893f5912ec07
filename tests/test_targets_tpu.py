"""What the real TPU compiler says of small runs on a v5e:2x2. Skipped where libtpu is missing."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: pip install -e '.[tpu]'",
    ),
]
GIB = 2**30
DIGITS = (
    "--config=configs/digits.py:increasing_batch",
    "--config.model.dtype=bfloat16",  # the type of a TPU's published peak
    "--target=v5e:2x2",
)


def plan(*flags: str, cache: str, status: int = 0) -> str:
    """What `experiments.plan` prints; `cache` keeps what the compiler said."""
    command = [sys.executable, "-m", "experiments.plan", *flags]
    done = subprocess.run(
        command,
        env=os.environ | {"HOME": cache, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The forecast of the digits on four devices, and the folder of its cache."""
    cache = str(tmp_path_factory.mktemp("home"))
    return json.loads(plan(*DIGITS, "--json", cache=cache)), cache


def test_every_batch_size_is_compiled(digits):
    found, _ = digits
    sizes = {str(segment["batch_size"]) for segment in found["segments"]}
    assert sizes == found["updates"].keys() == {"16", "80", "400"}
    for update in found["updates"].values():
        assert update["num_devices"] == 4
        layout = update["num_microbatches"], update["microbatch_size"], update["num_devices"]
        assert math.prod(layout) == update["batch_size"]
        assert 0 < update["memory_needed"] < update["memory_limit"] < 16 * GIB
        assert 0 < update["cycles"] < 1e7
        assert 0 < update["share_of_peak"] < 1
        assert {x["opcode"] for x in update["collectives"]} <= {"all-reduce", "collective-permute"}
        assert sum(x["bytes"] for x in update["collectives"]) > 0
    assert found["seconds"] < found["decay_seconds"]


def test_the_cache_says_the_same(digits):
    found, cache = digits
    assert json.loads(plan(*DIGITS, "--json", cache=cache)) == found
    shown = plan(*DIGITS, cache=cache)
    assert "the compiler's estimate in cycles" in shown and "libtpu" in shown


def test_an_unknown_slice_is_told_in_one_line(tmp_path):
    """Hosts have 2 x 2 chips. What libtpu itself logs may precede the line."""
    flags = ("--config=configs/digits.py:decaying_lr", "--config.recipe.batch_size=240")
    said = plan(*flags, "--target=v5e:3x5", cache=str(tmp_path), status=2).splitlines()
    assert said[-1].startswith("error: --target=v5e:3x5: ") and "Traceback" not in "".join(said)
