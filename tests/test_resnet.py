"""ResNet: published sizes, Goyal's initialisation, ghost batches, and logits against a peer."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchgrow.models.resnet import ResNet

IMAGES = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype(np.float32)


def random_variables(model):
    """Kernels that keep the variance; scales, biases and running statistics random."""
    rng = np.random.default_rng(1)
    draw = {
        "kernel": lambda shape: rng.normal(0.0, math.sqrt(2 / math.prod(shape[:-1])), shape),
        "scale": lambda shape: rng.uniform(0.5, 1.5, shape),
        "bias": lambda shape: rng.normal(0.0, 0.1, shape),
        "mean": lambda shape: rng.normal(0.0, 0.1, shape),
        "var": lambda shape: rng.uniform(0.5, 1.5, shape),
    }
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw[path[-1].key](leaf.shape).astype(np.float32), shapes
    )


@pytest.mark.parametrize(
    ("depth", "num_params"), [(18, 11_689_512), (50, 25_557_032), (101, 44_549_160)]
)
def test_parameter_count_is_the_published_one(depth, num_params):
    model = ResNet(depth=depth, num_classes=1000, ghost_batch_size=32, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    logits, variables = jax.eval_shape(
        partial(model.init_with_output, train=False), jax.random.key(0), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == num_params
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert (logits.shape, logits.dtype) == ((1, 1000), jnp.float32)


def test_unpublished_depth_is_refused():
    model = ResNet(depth=20, num_classes=10, ghost_batch_size=4)
    with pytest.raises(ValueError, match="unknown model.depth 20; choose 18, 34, 50"):
        model.init(jax.random.key(0), IMAGES, train=False)


@pytest.mark.slow
def test_initial_parameters_are_those_of_goyal():
    model = ResNet(depth=18, num_classes=1000, ghost_batch_size=4)
    key = jax.random.key(0, impl="rbg")  # compiles in a third of the default's time
    params = jax.jit(partial(model.init, train=False))(key, IMAGES)["params"]
    scales = [leaf["scale"] for name, leaf in params.items() if name.startswith("GhostBatchNorm")]
    zero_scales = [scale for scale in scales if not scale.any()]
    assert len(scales) == 20 and len(zero_scales) == 8  # the last one of each of 8 blocks
    kernels = [leaf["kernel"] for name, leaf in params.items() if name.startswith("Conv")]
    for kernel in kernels:
        height, width, _, channels_out = kernel.shape
        assert np.std(kernel) == pytest.approx(math.sqrt(2 / (height * width * channels_out)), 0.03)
    assert np.std(params["classifier"]["kernel"]) == pytest.approx(0.01, rel=0.01)
    assert not params["classifier"]["bias"].any()


@pytest.mark.slow
def test_training_in_bfloat16():
    """Finite, non-zero float32 gradients; logits near float32's; ghost batches apart."""
    model = ResNet(depth=18, num_classes=10, ghost_batch_size=4)
    variables = random_variables(model)

    def loss(params, images, dtype):
        logits, _ = model.clone(dtype=dtype).apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean(), logits

    grad = jax.jit(partial(jax.grad(loss, has_aux=True), dtype=jnp.bfloat16))
    grads, logits = grad(variables["params"], IMAGES)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all() and leaf.any()

    _, exact = jax.jit(partial(loss, dtype=jnp.float32))(variables["params"], IMAGES)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.std(exact)

    _, others = grad(variables["params"], np.concatenate([IMAGES[:7], -IMAGES[7:]]))
    np.testing.assert_array_equal(others[:4], logits[:4])
    assert (np.abs(others[4:] - logits[4:]).max(axis=1) > 0.01).all()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_logits_are_those_of_transformers(depth):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = ResNet(depth=depth, num_classes=10, ghost_batch_size=4)
    variables = random_variables(model)
    layout = (
        {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
        if depth == 18
        else {"layer_type": "bottleneck", "depths": [3, 4, 6, 3]}
    )
    peer = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=10, **layout)
    )
    with torch.no_grad():
        _copy_to_transformers(variables, peer)
        images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
        theirs = peer.eval()(images).logits.numpy()
    with jax.default_matmul_precision("float32"):
        ours = np.asarray(jax.jit(partial(model.apply, train=False))(variables, IMAGES))
    error, spread = np.abs(ours - theirs).max(), theirs.std(axis=0).mean()
    print(f"ResNet-{depth}: largest difference {error:.1e}; between images {spread:.2g}")
    assert error < 1e-4 * spread


def _copy_to_transformers(variables, peer):
    """The i-th convolution and norm, in torchvision's order: a block's shortcut comes last."""
    pairs = [peer.resnet.embedder.embedder]
    for stage in peer.resnet.encoder.stages:
        for block in stage.layers:
            pairs.extend(block.layer)
            if hasattr(block.shortcut, "convolution"):
                pairs.append(block.shortcut)
    params, stats = variables["params"], variables["batch_stats"]
    assert len(pairs) == len(stats)
    for i, pair in enumerate(pairs):
        norm, stat = params[f"GhostBatchNorm_{i}"], stats[f"GhostBatchNorm_{i}"]
        kernel = np.transpose(params[f"Conv_{i}"]["kernel"], (3, 2, 0, 1))
        _copy(kernel, pair.convolution.weight)
        _copy(norm["scale"], pair.normalization.weight)
        _copy(norm["bias"], pair.normalization.bias)
        _copy(stat["mean"], pair.normalization.running_mean)
        _copy(stat["var"], pair.normalization.running_var)
    _copy(params["classifier"]["kernel"].T, peer.classifier[1].weight)
    _copy(params["classifier"]["bias"], peer.classifier[1].bias)


def _copy(array, tensor):
    assert array.shape == tuple(tensor.shape)
    tensor.copy_(tensor.new_tensor(np.array(array)))
