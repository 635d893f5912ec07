"""Device memory: what an executable needs and what a device has."""

from typing import Any


def memory_needed(executable: Any) -> int | None:
    """Bytes of device memory that a call needs, from XLA's own analysis; None if it has none."""
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
    """Bytes that JAX may use on `device`, or None where the backend does not say (CPU)."""
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_in_use(device: Any) -> int | None:
    """Bytes in use on `device` now, or None where the backend does not say."""
    return (device.memory_stats() or {}).get("bytes_in_use")
