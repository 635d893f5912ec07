"""Sizes and shapes of the models, and how they are chosen by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.models import ConvNet, WideResNet, make_model


def shapes(model, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=True), jax.random.key(0), image)


def count(tree) -> int:
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("depth", "width", "num_classes", "num_params"),
    [(16, 4, 10, 2_748_890), (16, 1, 10, 175_066), (28, 10, 10, 36_479_194)],
)
def test_wide_resnet_has_the_papers_parameters(depth, width, num_classes, num_params):
    model = WideResNet(depth, width, num_classes, ghost_batch_size=128)
    assert count(shapes(model, (32, 32, 3))["params"]) == num_params


def test_conv_net_counts_by_hand():
    model = ConvNet(channels=16, num_classes=10, ghost_batch_size=16)
    convolutions = 9 * 1 * 16 + 9 * 16 * 32
    norms = 2 * 16 + 2 * 32
    classifier = 4 * 4 * 32 * 10 + 10
    assert count(shapes(model, (8, 8, 1))["params"]) == convolutions + norms + classifier


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wide_resnet_keeps_what_is_trained_in_float32(dtype):
    """Logits, parameters and statistics are float32; convolutions compute in `dtype`."""
    model = make_model(
        "wide_resnet", dtype=dtype, depth=10, width=1, num_classes=5, ghost_batch_size=2
    )

    def run(images):
        variables = model.init(jax.random.key(0), images, train=True)
        logits, updated = model.apply(
            variables, images, train=True, mutable=True, capture_intermediates=True
        )
        return variables, updated, [logits, model.apply(variables, images, train=False)]

    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    variables, updated, logits = jax.eval_shape(run, images)
    inside = updated.pop("intermediates")
    assert inside["stem"]["__call__"][0].dtype == dtype
    for found in logits:
        assert found.shape == (4, 5) and found.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}


def test_wide_resnet_halves_the_image_twice():
    """The last group of a 32x32 image is 8x8, by the shapes of the intermediate outputs."""
    model = WideResNet(10, 1, num_classes=10, ghost_batch_size=1)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    _, state = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, train=True, capture_intermediates=True),
        jax.random.key(0),
        image,
    )
    outputs = {
        name: inner["__call__"]
        for name, inner in state["intermediates"].items()
        if name != "__call__"
    }
    sizes = {out[0].shape[1:] for name, out in outputs.items() if name.startswith(("Conv", "stem"))}
    assert sizes == {(32, 32, 16), (16, 16, 32), (8, 8, 64)}


def test_statistics_do_not_depend_on_the_ghost_size():
    """Else a checkpoint could not be read after a growth."""
    small, large = (ConvNet(4, 10, ghost_batch_size=g) for g in (2, 64))
    assert shapes(small, (8, 8, 1)) == shapes(large, (8, 8, 1))


def test_unknown_names_and_fields_are_refused():
    with pytest.raises(ValueError, match="unknown model.name 'vgg'; choose conv_net"):
        make_model("vgg", dtype="float32")
    with pytest.raises(ValueError, match="unknown model.dtype 'float16'; choose float32, bfloat16"):
        make_model("conv_net", dtype="float16")
    with pytest.raises(ValueError, match="conv_net has no field model.depth; there are channels"):
        make_model("conv_net", dtype="float32", depth=16)
    with pytest.raises(ValueError, match="ghost_batch_size is not set, but conv_net has"):
        make_model("conv_net", channels=2, num_classes=3)
    with pytest.raises(ValueError, match="model.depth 17 must be 6n"):
        shapes(WideResNet(17, 4, 10, ghost_batch_size=1), (32, 32, 3))


def test_a_model_of_your_own_by_module_and_class():
    """With ghost batches it gets their size and the device axis; without, neither."""
    net = make_model("tiny:TinyNet", num_classes=3, ghost_batch_size=4, axis_name="batch")
    assert (net.num_classes, net.ghost_batch_size, net.axis_name) == (3, 4, "batch")
    mlp = make_model("batchgrow.models.mlp:MLP", features=(2,), outputs=1, ghost_batch_size=4)
    assert mlp.features == (2,)
    with pytest.raises(ValueError, match="model.name 'tiny:Net' cannot be imported"):
        make_model("tiny:Net")
