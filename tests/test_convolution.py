"""Our convolution is lax's: its value, its gradients, its parameters; and quick inside a loop."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from batchgrow.models import convolution
from batchgrow.models.convolution import DIMENSIONS, Conv, conv_general_dilated

CASES = [
    # size, window, strides, padding
    (6, 3, (1, 1), "SAME"),
    (6, 3, (2, 2), "SAME"),  # pads 0 before, 1 after
    (7, 3, (2, 2), ((1, 1), (1, 1))),
    (6, 3, (2, 2), ((1, 1), (1, 1))),  # the last padding is never read
    (8, 3, (2, 2), "VALID"),  # the last pixel is never read
    (6, 1, (1, 1), "SAME"),
    (6, 1, (2, 2), ((0, 0), (0, 0))),
    (9, 7, (2, 2), ((3, 3), (3, 3))),
    (6, 3, (1, 2), ((2, 0), (0, 3))),
    (5, 2, (1, 1), ((0, 1), (1, 0))),
    (6, 1, (1, 1), ((1, 2), (2, 0))),  # padding beyond the window
    (9, 3, (3, 3), "VALID"),
    (2, 3, (1, 1), "SAME"),  # smaller than the window
    (1, 3, (1, 1), ((1, 1), (1, 1))),
    (2, 3, (2, 2), ((1, 1), (1, 1))),
    (3, 3, (2, 2), ((1, 1), (1, 1))),  # larger, but its gradient is smaller
    (4, 7, (2, 2), ((3, 3), (3, 3))),
]


def _lax(images, kernel, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=DIMENSIONS)


def _operands(size: int, window: int):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (4, size, size + 1, 3))  # not square: axes are not mixed up
    return images, jax.random.normal(keys[1], (window, window, 3, 5))


@pytest.mark.parametrize("size, window, strides, padding", CASES)
def test_value_and_gradients_are_those_of_lax(size, window, strides, padding):
    def value_and_gradients(convolve, *operands):
        value, vjp = jax.vjp(lambda x, w: convolve(x, w, strides, padding), *operands)
        return value, *vjp(jax.random.normal(jax.random.key(1), value.shape))

    operands = _operands(size, window)
    ours = jax.jit(lambda *x: value_and_gradients(conv_general_dilated, *x))(*operands)
    theirs = jax.jit(lambda *x: value_and_gradients(_lax, *x))(*operands)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_examples", "per_chunk"), [(6, 2), (6, 4), (7, 3), (5, 0)])
def test_kernel_gradient_in_chunks(num_examples, per_chunk, monkeypatch):
    """Of 2, 3, 1 and 1 examples: as many as fit and divide the batch."""
    images = jax.random.normal(jax.random.key(0), (num_examples, 9, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    monkeypatch.setattr(convolution, "CHUNK_BYTES", per_chunk * images[0].nbytes)

    def gradient(convolve):
        return jax.jit(jax.grad(lambda w: jnp.sum(convolve(images, w, (2, 2), "SAME") ** 2)))

    ours = gradient(conv_general_dilated)
    np.testing.assert_allclose(ours(kernel), gradient(_lax)(kernel), rtol=1e-4, atol=1e-4)
    assert "while" in ours.lower(kernel).as_text()


def test_module_is_flax_conv():
    images, _ = _operands(6, 3)
    for arguments in ({"strides": 2}, {"padding": 1}, {"padding": "VALID", "use_bias": False}):
        ours, theirs = Conv(5, (3, 3), **arguments), nn.Conv(5, (3, 3), **arguments)
        variables = theirs.init(jax.random.key(0), images)
        equal = np.testing.assert_array_equal
        jax.tree.map(equal, ours.init(jax.random.key(0), images), variables)
        equal(ours.apply(variables, images), theirs.apply(variables, images))


def test_gradients_in_bfloat16_keep_the_dtype():
    def gradients(convolve):
        def loss(x, w):
            return convolve(x, w, (2, 2), "SAME").astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1))(*operands)

    operands = [x.astype(jnp.bfloat16) for x in _operands(6, 3)]
    for a, b in zip(gradients(conv_general_dilated), gradients(_lax), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=2e-2)


def _loss(images, kernel):
    return jnp.square(conv_general_dilated(images, kernel, (1, 1), "SAME")).mean()


def test_gradient_under_pmap_is_the_mean_over_devices():
    images, kernel = _operands(6, 3)
    gradient = jax.grad(_loss, 1)
    mean = jax.pmap(lambda x, w: lax.pmean(gradient(x, w), "data"), "data", in_axes=(0, None))
    for one in mean(images.reshape(4, 1, *images.shape[1:]), kernel):
        np.testing.assert_allclose(one, gradient(images, kernel), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [6, 2])
def test_loop_body_has_only_convolutions_that_the_library_takes(size):
    """In one order, on images as large as the window: XLA:CPU leaves any other to slow code."""
    images, kernel = _operands(size, 3)

    def update(carry, _):
        of_images, of_kernel = jax.grad(_loss, (0, 1))(*carry)
        return (carry[0] - of_images, carry[1] - of_kernel), None

    program = jax.jit(lambda *carry: lax.scan(update, carry, length=3)[0])
    options = {"xla_backend_optimization_level": 3}  # the tests' own level takes no order apart
    text = str(program.lower(images, kernel).compile(options).as_text())
    found = re.findall(r" convolution\((.*)\), window={size=(\d+)x.*dim_labels=(\w+->\w+)", text)
    assert [labels for *_, labels in found] == ["b01f_01io->b01f"] * 3
    for operands, window, _ in found:
        height = re.search(r"f32\[\d+,(\d+),", operands) or re.search(
            re.escape(operands.split(",")[0]) + r" = f32\[\d+,(\d+),", text
        )
        assert height is not None and int(height[1]) >= int(window)


@pytest.mark.parametrize("size", [6, 2])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_off_the_cpu_the_convolutions_are_those_of_lax(platform, size):
    def convolutions(convolve):
        def loss(x, w):
            return jnp.square(convolve(x, w, (2, 2), "SAME")).mean()

        traced = jax.jit(jax.grad(loss, (0, 1))).trace(*_operands(size, 3))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"stablehlo.convolution\(.*?\) (.*)", text)

    assert len(convolutions(_lax)) == 3
    assert convolutions(conv_general_dilated) == convolutions(_lax)


def test_refuses_what_it_does_not_do():
    images, kernel = _operands(6, 3)
    with pytest.raises(ValueError, match="rhs_dilation"):
        conv_general_dilated(images, kernel, (1, 1), "SAME", rhs_dilation=(2, 2))
    with pytest.raises(ValueError, match="feature_group_count"):
        Conv(6, (3, 3), feature_group_count=3).init(jax.random.key(0), images)
