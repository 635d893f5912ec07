"""Eight emulated CPU devices, strict JAX, quick compilation, and a cache of the tests' own."""

import os
import tempfile

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "batchgrow-test-cache")
)

import jax
from store import bucket  # noqa: F401, a fixture

jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore = ["member.py", "run_member.py"]  # programs that the tests start
