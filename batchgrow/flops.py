"""Arithmetic of a model, and what a device could do: for the share of the peak."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Dense peak in FLOP/s by dtype, from the makers' data sheets; float32 on NVIDIA is without TF32.
PEAK_FLOPS = {
    "NVIDIA H100": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "TPU v2": {"bfloat16": 22.5e12},
    "TPU v3": {"bfloat16": 61.5e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v6 lite": {"bfloat16": 918e12},
}


def training_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Floating-point operations of one image forward and back: three times the forward pass.

    Counts what XLA counts in the traced forward pass; nothing is compiled or run.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), image)
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
    analysis: Any = forward.lower(variables, image).cost_analysis()
    return 3.0 * analysis["flops"]


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """The peak of a device (a TPU core, a GPU), or None if it is not in the table."""
    for name, peaks in PEAK_FLOPS.items():
        if device_kind.startswith(name):
            return peaks.get(dtype)
    return None
