"""The memory and the peak arithmetic of devices."""

import math
from typing import Any

import jax

# Dense peak in FLOP/s by dtype, from the makers' data sheets; the first name that fits counts.
# By default JAX multiplies float32 numbers in TF32 on NVIDIA GPUs, and in bfloat16 on TPUs.
PEAK_FLOPS = {
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
    "NVIDIA H100 NVL": {"bfloat16": 835e12, "float32": 417e12},
    "NVIDIA H100": {"bfloat16": 989e12, "float32": 494e12},
    "NVIDIA H200 NVL": {"bfloat16": 835e12, "float32": 417e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 494e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 156e12},
    "TPU v2": {"bfloat16": 22.5e12},
    "TPU v3": {"bfloat16": 61.5e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    "TPU7x": {"bfloat16": 1153.5e12},
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the peak of one device (a TPU core, a GPU) in FLOP/s, or None if unknown."""
    for name, peaks in PEAK_FLOPS.items():
        if device_kind.startswith(name):
            return peaks.get(dtype)
    return None


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays of a pytree on a device, or of `jax.ShapeDtypeStruct`s in their place."""
    sizes = {
        x.dtype: jax.dtypes.canonicalize_dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)
    }
    return sum(math.prod(x.shape) * sizes[x.dtype] for x in jax.tree.leaves(tree))


def memory_needed(executable: Any) -> int | None:
    """Bytes of device memory that a call needs, by XLA's own analysis; None if it has none."""
    analysis = executable.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )


def memory_limit(device: Any) -> int | None:
    """Bytes that JAX may use on `device`; None where the backend does not report it (CPU)."""
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_in_use(device: Any) -> int | None:
    """Bytes in use on `device` now; None where the backend does not report it."""
    return (device.memory_stats() or {}).get("bytes_in_use")
