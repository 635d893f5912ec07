"""Dropout by example: masks that no layout changes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from batchgrow.models import GhostBatchNorm
from batchgrow.models.dropout import apply

RATE = 0.3
KEYS = jax.vmap(partial(jax.random.fold_in, jax.random.key(7)))(jnp.arange(8))
ONES = jnp.ones((8, 200, 5))


class Net(nn.Module):
    """The outputs of three masks of ones: two layers, of which the second is called twice."""

    make: object = partial(nn.Dropout, RATE)

    @nn.compact
    def __call__(self, x, *, train):
        second = self.make(deterministic=not train, name="second")
        return self.make(deterministic=not train)(x), second(x), second(x)


def masks(model, keys=KEYS, inputs=ONES):
    return jax.jit(lambda keys, x: apply(model, {}, x, keys, train=True)[0])(keys, inputs)


def test_mask_depends_on_the_key_of_its_example_alone():
    whole = masks(Net())
    order = jnp.array([5, 0, 3])
    for all_masks, some in zip(whole, masks(Net(), KEYS[order], ONES[:3]), strict=True):
        np.testing.assert_array_equal(all_masks[order], some)
    single = [masks(Net(), KEYS[i : i + 1], ONES[:1]) for i in range(8)]
    for layer, all_masks in enumerate(whole):
        np.testing.assert_array_equal(all_masks, np.concatenate([out[layer] for out in single]))


def test_masks_differ_between_examples_layers_and_calls():
    flat = np.stack([np.asarray(out).reshape(8, -1) for out in masks(Net())]).reshape(24, -1) > 0
    equal = (flat[:, None] == flat[None]).mean(-1)[np.triu_indices(24, 1)]
    independent = (1 - RATE) ** 2 + RATE**2
    assert np.abs(equal - independent).max() < 5 * np.sqrt(0.25 / 1000)


def test_rate_and_expectation():
    first, second, _ = masks(Net(), jnp.tile(KEYS, 1), ONES)
    for out in (first, second):
        dropped = float((out == 0).mean())
        assert dropped == pytest.approx(RATE, abs=5 * np.sqrt(RATE * (1 - RATE) / out.size))
        np.testing.assert_allclose(out[out > 0], 1 / (1 - RATE), rtol=1e-6)


def test_evaluation_and_rate_zero_change_nothing():
    out, state = apply(Net(), {}, ONES, None, train=False)
    assert state == {} and all((o == ONES).all() for o in out)
    assert all((o == ONES).all() for o in masks(Net(partial(nn.Dropout, 0.0))))
    assert all((o == 0).all() for o in masks(Net(partial(nn.Dropout, 1.0))))


def test_gradient_passes_where_the_mask_does():
    def total(x):
        return apply(Net(), {}, x, KEYS, train=True)[0][0].sum()

    np.testing.assert_array_equal(jax.grad(total)(ONES), masks(Net())[0])


def test_broadcast_dims_share_the_mask_within_an_example():
    out = masks(Net(partial(nn.Dropout, RATE, broadcast_dims=(1,))))[0]
    assert (out == out[:, :1]).all() and not (out == out[:1]).all()
    with pytest.raises(ValueError, match="shares a mask between examples"):
        masks(Net(partial(nn.Dropout, RATE, broadcast_dims=(-3,))))


def test_model_state_is_updated_in_training_only():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return GhostBatchNorm(8, not train)(nn.Dropout(RATE)(x, not train))

    x = 1 + jnp.arange(8.0)[:, None]
    variables = Norm().init(jax.random.key(0), x, train=False)
    _, evaluated = apply(Norm(), variables, x, None, train=False)
    _, trained = apply(Norm(), variables, x, KEYS, train=True)
    assert set(evaluated) == set(trained) == {"batch_stats"}
    before = variables["batch_stats"]["GhostBatchNorm_0"]["mean"]
    assert evaluated["batch_stats"]["GhostBatchNorm_0"]["mean"] == before
    assert trained["batch_stats"]["GhostBatchNorm_0"]["mean"] != before


def test_statistics_of_whatever_a_device_holds_are_refused():
    class Norm(nn.Module):
        frozen: bool

        @nn.compact
        def __call__(self, x, *, train):
            return nn.BatchNorm()(x, use_running_average=self.frozen or not train)

    x = ONES[:, None]
    variables = Norm(True).init(jax.random.key(0), x, train=False)
    apply(Norm(False), variables, x, None, train=False)
    apply(Norm(True), variables, x, KEYS, train=True)
    with pytest.raises(ValueError, match="BatchNorm_0 is nn.BatchNorm, .*: use batchgrow.Ghost"):
        apply(Norm(False), variables, x, KEYS, train=True)


def test_remat_keeps_the_masks():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(RATE, deterministic=False)(nn.Dropout(RATE, deterministic=False)(x))

    class Outer(nn.Module):
        block: type[nn.Module]

        @nn.compact
        def __call__(self, x, *, train):
            return jnp.square(self.block(name="block")(x))

    def gradient(block):
        return jax.grad(lambda x: apply(Outer(block), {}, x, KEYS, train=True)[0].sum())(ONES)

    np.testing.assert_array_equal(gradient(Block), gradient(nn.remat(Block)))


def test_layers_of_a_scan_have_masks_of_their_own():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            return carry, nn.Dropout(RATE, deterministic=False)(carry)

    class Scan(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.scan(Block, length=3, split_rngs={"dropout": True})()(x, None)[1]

    whole = masks(Scan())
    assert whole.shape == (3, *ONES.shape)
    assert not any((whole[i] == whole[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_array_equal(whole[:, 4:6], masks(Scan(), KEYS[4:6], ONES[4:6]))


def test_what_cannot_be_right_is_refused():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.MultiHeadDotProductAttention(1, dropout_rate=RATE)(x, deterministic=not train)

    class Merged(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dropout(RATE)(x.reshape(-1, 5), deterministic=not train)

    variables = Attention().init(jax.random.key(0), ONES, train=False)
    with pytest.raises(ValueError, match="MultiHeadDotProductAttention draws from the 'dropout'"):
        apply(Attention(), variables, ONES, KEYS, train=True)
    with pytest.raises(ValueError, match=r"inputs \(1600, 5\) for 8 examples"):
        apply(Merged(), {}, ONES, KEYS, train=True)
    with pytest.raises(InvalidRngError, match="dropout"):
        apply(Net(), {}, ONES, None, train=True)  # keys are needed
