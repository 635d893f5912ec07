"""Stochastic depth, single-branch Shake and ShakeDrop: factors, gradients, and layouts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import assert_close, checkpoints, run_tiny

from batchgrow.layout import AXIS_NAME, make_mesh
from batchgrow.models import ResNet, WideResNet
from batchgrow.models.branches import LEVELS, Branches, scale
from batchgrow.models.dropout import apply, masks_by_example

KEYS = jax.vmap(partial(jax.random.fold_in, jax.random.key(3)))(jnp.arange(16))
ONES = jnp.ones((16, 4, 4, 6))
BLOCKS = 4


def make(kind: str, level: str = "image", last: float = 0.5, ghost: int = 4, axis=None) -> Branches:
    return Branches(kind, BLOCKS, last, level, ghost, axis)


@partial(jax.jit, static_argnames=("branches", "block"))
def factors(branches: Branches, keys=KEYS, block: int = BLOCKS) -> tuple[jax.Array, jax.Array]:
    """f and f' of branches of ones."""
    ones = jnp.ones((len(keys), *ONES.shape[1:]))
    with masks_by_example(keys):
        forward, pull = jax.vjp(partial(branches.scale, block=block, train=True), ones)
    return forward, pull(ones)[0]


def test_the_gradient_takes_the_other_factor():
    rng = np.random.default_rng(0)
    x, f, g, cotangent = rng.normal(size=(4, 3, 5)).astype(np.float32)
    out, pull = jax.vjp(lambda x: scale(x, f, g), x)
    np.testing.assert_array_equal(out, f * x)
    np.testing.assert_array_equal(pull(cotangent)[0], g * cotangent)


@pytest.mark.parametrize(
    ("kind", "least"), [("stochastic_depth", 0.0), ("shake", 0.0), ("shake_drop", -1.0)]
)
def test_factors_have_the_distribution_of_the_formula(kind, least):
    """By 20,000 images: P(b = 1), bounds, means, and f' independent of f unless b decides both."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(20_000))
    draw = jax.jit(lambda keys: make(kind)._draw(ONES[:1], keys, 0.7))
    f, g = (np.asarray(found).ravel() for found in draw(keys))
    kept = (f == 1) & (g == 1)
    assert kept.mean() == pytest.approx(0.0 if kind == "shake" else 0.7, abs=0.02)
    if kind == "stochastic_depth":
        np.testing.assert_array_equal(f, g)
        assert set(f) == {0.0, 1.0}
        return
    f, g = f[~kept], g[~kept]
    assert least <= f.min() < least + 0.01 and 0.99 < f.max() <= 1
    assert 0 <= g.min() < 0.01 and 0.99 < g.max() <= 1
    assert f.mean() == pytest.approx((1 + least) / 2, abs=0.03)
    assert g.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(f, g)[0, 1]) < 0.05


def test_evaluation_takes_the_mean_and_depth_decays_linearly():
    """Block l of 4 with P_L = 0.5 is left as it is with probability 1 - l / 8."""
    for kind in ("stochastic_depth", "shake_drop"):
        out = [make(kind).scale(ONES, block, train=False)[0, 0, 0, 0] for block in range(1, 5)]
        np.testing.assert_allclose(out, [1 - block / 8 for block in range(1, 5)])
    assert make("shake").scale(ONES, 4, train=False)[0, 0, 0, 0] == 0.5
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(1)))(jnp.arange(4000))
    for kind in ("stochastic_depth", "shake", "shake_drop"):
        trained, _ = factors(make(kind), keys, 3)
        evaluated = make(kind).scale(ONES, 3, train=False)[0, 0, 0, 0]
        assert float(trained[:, 0, 0, 0].mean()) == pytest.approx(float(evaluated), abs=0.04)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_share_what_they_say(level):
    """Without b, f varies between ghosts of 4, images, channels, or pixels, and nothing finer."""
    for found in factors(make("shake_drop", level, last=0.0)):
        number = {"batch": 4, "image": 16, "channel": 16 * 6, "pixel": ONES.size}[level]
        assert number - 4 < len(np.unique(np.asarray(found))) <= number  # few are equal by chance
        assert bool((found[:, :1, :1] == found).all()) is (level != "pixel")
        assert bool((found[..., :1] == found).all()) is (level in ("batch", "image"))
        if level == "batch":
            assert (np.asarray(found).reshape(4, -1) == found[::4, 0, 0, :1]).all()


def test_blocks_draw_for_themselves():
    with masks_by_example(KEYS):
        first, second = (make("shake").scale(ONES, BLOCKS, train=True) for _ in range(2))
    assert (first[:, 0, 0, 0] != second[:, 0, 0, 0]).all()


@pytest.mark.parametrize(("level", "devices"), [("batch", (2, 8)), ("channel", (4,))])
def test_factors_do_not_depend_on_the_layout(level, devices):
    """Of two micro-batches, and of several devices; 8 of them share each ghost batch of 4."""
    whole = factors(make("shake_drop", level))
    halves = [factors(make("shake_drop", level), KEYS[i : i + 8]) for i in (0, 8)]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))
    split = PartitionSpec(AXIS_NAME)
    branches = make("shake_drop", level, axis=AXIS_NAME)
    for num_devices in devices:
        mapped = jax.shard_map(
            partial(factors, branches),
            mesh=make_mesh(num_devices),
            in_specs=(split,),
            out_specs=split,
            check_vma=False,
        )
        np.testing.assert_array_equal(whole, jax.jit(mapped)(KEYS))


def networks(**options):
    return {
        "wide_resnet": WideResNet(10, 1, 3, ghost_batch_size=4, **options),
        "resnet": ResNet(18, 3, ghost_batch_size=4, **options),
    }


@pytest.mark.parametrize("name", ["wide_resnet", pytest.param("resnet", marks=pytest.mark.slow)])
def test_a_network_that_keeps_every_branch_is_the_plain_one(name):
    """b = 1 everywhere: the same parameters, outputs and gradients."""
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    plain = networks()[name]
    variables = jax.jit(partial(plain.init, train=True))(jax.random.key(1), images)

    def run(model):
        def total(params):
            found = {**variables, "params": params}
            logits, _ = apply(model, found, images, KEYS[:4], train=True)
            return (logits**2).sum(), logits

        (_, logits), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
            variables["params"]
        )
        return logits, gradient

    kept = networks(branches="shake_drop", last_probability=1.0)[name]
    assert_close(run(kept), run(plain), 1e-4)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("wide_resnet", 3), pytest.param("resnet", 8, marks=pytest.mark.slow)],
)
def test_networks_number_their_blocks(name, blocks, monkeypatch):
    """Block l of L is scaled by 1 - l / L (1 - P_L) in evaluation."""
    scaled = []

    def note(self, branch, block, *, train):
        scaled.append((block, self.num_blocks, train))
        return branch

    monkeypatch.setattr(Branches, "scale", note)
    model = networks(branches="stochastic_depth")[name]
    image = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    assert scaled == [(block, blocks, False) for block in range(1, blocks + 1)]


def test_what_cannot_be_right_is_refused():
    with pytest.raises(ValueError, match=r"unknown model.branches 'drop'; choose plain, stoch"):
        make("drop")
    with pytest.raises(ValueError, match=r"unknown model.branch_level 'row'; choose batch, image"):
        make("shake", "row")
    with pytest.raises(ValueError, match=r"model.last_probability 1.5 must be in 0..1"):
        make("shake", last=1.5)
    with pytest.raises(ValueError, match=r"'shake' needs a key for each of 16 examples"):
        make("shake").scale(ONES, 1, train=True)


def test_the_networks_take_dropout_where_the_paper_has_it():
    """Between the two convolutions of each block, and before the classifier."""

    def dropped(**options):
        model = WideResNet(16, 1, 3, ghost_batch_size=2, **options)
        found = []

        def note(next_fun, args, kwargs, context):
            module = context.module
            if isinstance(module, nn.Dropout | nn.Conv | nn.Dense) or (
                type(module).__name__ == "Conv"
            ):
                found.append((type(module).__name__, getattr(module, "rate", None)))
            return next_fun(*args, **kwargs)

        image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        with nn.intercept_methods(note):
            jax.eval_shape(partial(model.init, train=True), jax.random.key(0), image)
        return found

    found = dropped(dropout=0.3, classifier_dropout=0.5)
    blocks = [i for i, entry in enumerate(found) if entry == ("Dropout", 0.3)]
    assert len(blocks) == 6
    assert all(found[i - 1][0] == found[i + 1][0] == "Conv" for i in blocks)
    assert found[-2:] == [("Dropout", 0.5), ("Dense", None)]


METHODS = {
    "model": {
        "name": "wide_resnet",
        "depth": 10,
        "width": 1,
        "num_classes": 10,
        "dropout": 0.3,
        "classifier_dropout": 0.2,
        "branches": "shake_drop",
        "branch_level": "batch",
        "branch_norm": True,
        "last_layer": "hadamard",
    },
    "task.cutout": 3,
    "recipe.num_epochs": 0.3,
}


@pytest.mark.slow
def test_a_run_with_every_method_is_the_same_on_any_layout(tmp_path):
    """Devices that share ghost batches, micro-batches, and a run that was stopped and resumed."""
    whole, _ = run_tiny(tmp_path / "whole", METHODS).results
    layouts = {"run.num_devices": 8}, {"run.max_microbatch_size": 16}
    for i, layout in enumerate(layouts):
        found, _ = run_tiny(tmp_path / str(i), METHODS | layout).results
        assert found.keys() == whole.keys()
        # Later, a single ReLU that rounding has switched may move parameters by 0.001.
        for a, b in zip(*map(jax.tree.leaves, (found[160].params, whole[160].params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    stopped = tmp_path / "stopped"
    run_tiny(stopped, METHODS, stop=lambda seen: seen > 160)
    assert checkpoints(stopped)
    resumed = run_tiny(stopped, METHODS).states
    last = max(whole)
    jax.tree.map(np.testing.assert_array_equal, resumed[last].params, whole[last].params)
