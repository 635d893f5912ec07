"""Eight emulated CPU devices, strict JAX, and a compilation cache of the tests' own."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "batchgrow-test-cache")
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
