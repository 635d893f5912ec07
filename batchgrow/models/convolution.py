"""Convolutions whose gradients XLA keeps fast on the CPU inside a loop.

JAX writes both gradients of a convolution as convolutions of permuted dimensions. Outside of loops
XLA:CPU brings those into the one order that its library takes, (batch, height, width, channels)
with kernels (height, width, in, out). Inside the body of a `scan` or `fori_loop` it does not, and
falls back to code about a hundred times slower. Here both gradients are written in that order.
Barriers around what is transposed keep XLA from fusing it, which saves up to a tenth of a step.

The gradient of a kernel sums over all examples. Chunks of them that fit into caches reduce the CPU
time of an update of a WRN-16-4 to three quarters.

The library does not take images that are smaller than the kernel either, such as those in the last
stage of a ResNet on small pictures. There, XLA's own code is forty times slower. Such images are
padded beforehand.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Pairs = tuple[tuple[int, int], tuple[int, int]]

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
CHUNK_BYTES = 2**21


def conv_general_dilated(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` for an undilated, ungrouped two-dimensional convolution.

    Value and gradient are those of the original. The CPU computes the gradient, and the value for
    images that are smaller than the kernel, in another order, so that they differ by rounding. Only
    reverse-mode differentiation works.

    Args:
      images: `(batch, height, width, in)`.
      kernel: `(height, width, in, out)`, of the same dtype.
      strides: the strides of height and width.
      padding: "SAME", "VALID" or a pair of numbers for each of height and width.
      options: the other arguments of the original, which must have their default values.

    Returns:
      `(batch, height, width, out)`.

    Raises:
      ValueError: if `options` asks for dilation, groups or a precision.
    """
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}
    numbers = lax.conv_dimension_numbers(images.shape, kernel.shape, DIMENSIONS)
    plain |= {"dimension_numbers": numbers, "precision": None}
    for name, value in options.items():
        if value != plain.get(name):
            raise ValueError(f"{name}={value} in a convolution: take flax.linen.Conv for it")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolve(images, kernel, tuple(strides), tuple((low, high) for low, high in padding))


# `flax.linen.Conv` in every respect, its parameters included.
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)


def _lax_convolve(images, kernel, strides, padding, **dilation) -> jax.Array:
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=DIMENSIONS, **dilation
    )


def _cpu_convolve(images, kernel, strides, padding, **dilation) -> jax.Array:
    """The same convolution in a form that is fast with XLA:CPU."""
    if _is_small(images, kernel):
        spaces = [step - 1 for step in dilation.pop("lhs_dilation", (1, 1))]
        around = [(low, high, space) for (low, high), space in zip(padding, spaces, strict=True)]
        zero = jnp.zeros((), images.dtype)
        images = lax.pad(images, zero, [(0, 0, 0), *around, (0, 0, 0)])
        images, padding = lax.optimization_barrier(images), "VALID"
    return _lax_convolve(images, kernel, strides, padding, **dilation)


def _is_small(images, kernel) -> bool:
    return any(images.shape[i + 1] < kernel.shape[i] for i in (0, 1))


def _convolve_forward(images, kernel, strides: tuple[int, int], padding: Pairs) -> jax.Array:
    if not _is_small(images, kernel):
        return _lax_convolve(images, kernel, strides, padding)
    options = {"strides": strides, "padding": padding}
    return lax.platform_dependent(
        images,
        kernel,
        cpu=partial(_cpu_convolve, **options),
        default=partial(_lax_convolve, **options),
    )


_convolve = jax.custom_vjp(_convolve_forward, nondiff_argnums=(2, 3))


def _forward(images, kernel, strides: tuple[int, int], padding: Pairs):
    return _convolve_forward(images, kernel, strides, padding), (images, kernel)


def _backward(strides: tuple[int, int], padding: Pairs, residuals, cotangent):
    def by_lax(images, kernel, cotangent):
        convolve = partial(_lax_convolve, strides=strides, padding=padding)
        return jax.vjp(convolve, images, kernel)[1](cotangent)

    def in_order(images, kernel, cotangent):
        return (
            _images_gradient(images, kernel, cotangent, strides, padding),
            _kernel_gradient(images, kernel, cotangent, strides, padding),
        )

    return lax.platform_dependent(*residuals, cotangent, cpu=in_order, default=by_lax)


_convolve.defvjp(_forward, _backward)


def _images_gradient(images, kernel, cotangent, strides, padding: Pairs) -> jax.Array:
    """The cotangent, `strides - 1` zeros between its pixels, convolved with the turned kernel."""
    turned = lax.optimization_barrier(jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    full = [
        (kernel.shape[i] - 1 - low, images.shape[i + 1] - 1 - _last(cotangent, strides, i) + low)
        for i, (low, _) in enumerate(padding)
    ]
    return _cpu_convolve(cotangent, turned, (1, 1), full, lhs_dilation=strides)


def _kernel_gradient(images, kernel, cotangent, strides, padding: Pairs) -> jax.Array:
    """The sum over chunks of examples, each of at most `CHUNK_BYTES` of images or one example."""
    num_examples, largest = images.shape[0], CHUNK_BYTES // (images[0].size * images.dtype.itemsize)
    size = next(
        n for n in range(max(1, min(num_examples, largest)), 0, -1) if num_examples % n == 0
    )
    if size == num_examples:
        return _chunk_gradient(images, kernel, cotangent, strides, padding)

    def add(total, chunk):
        return total + _chunk_gradient(chunk[0], kernel, chunk[1], strides, padding), None

    chunks = [x.reshape(-1, size, *x.shape[1:]) for x in (images, cotangent)]
    return lax.scan(add, jnp.zeros(kernel.shape, kernel.dtype), chunks)[0]


def _chunk_gradient(images, kernel, cotangent, strides, padding: Pairs) -> jax.Array:
    """The images convolved with the cotangent, examples in the place of channels."""
    reach = [
        (low, _last(cotangent, strides, i) + kernel.shape[i] - images.shape[i + 1] - low)
        for i, (low, _) in enumerate(padding)
    ]
    examples_last = images.transpose(3, 1, 2, 0)
    window = cotangent.transpose(1, 2, 0, 3)
    examples_last, window = lax.optimization_barrier((examples_last, window))
    gradient = _cpu_convolve(examples_last, window, (1, 1), reach, rhs_dilation=strides)
    return lax.optimization_barrier(gradient).transpose(1, 2, 0, 3)


def _last(output: jax.Array, strides: tuple[int, int], i: int) -> int:
    """Where on the padded images the window of the last output pixel begins, along axis `i`."""
    return (output.shape[i + 1] - 1) * strides[i]
