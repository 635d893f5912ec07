"""Training steps as one would write them by hand in Flax Linen, to compile beside ours.

`resnet50` does what the ImageNet example of flax is published to do: a ResNet-50 v1.5 with
`nn.BatchNorm` in bfloat16, cross entropy, an L2 penalty on kernels as a part of the loss, the mean
gradient over the devices, momentum SGD of Nesterov, and the mean loss and accuracy over the
devices. Each device keeps its own running statistics. `wide_resnet` is the same step around a
WRN-16-4. Both take images that the host has augmented and normalised, as ours does on the device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from batchgrow.layout import AXIS_NAME
from batchgrow.models import Transformer

MOMENTUM = 0.9
L2 = 1e-4


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks; images `(batch, 224, 224, 3)` to logits."""

    num_classes: int = 1000
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, num_blocks in enumerate((3, 4, 6, 3)):
            for block in range(num_blocks):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                channels = 64 * 2**stage
                y = nn.relu(norm()(conv(channels, (1, 1))(x)))
                y = nn.relu(norm()(conv(channels, (3, 3), strides)(y)))
                y = norm(scale_init=nn.initializers.zeros)(conv(4 * channels, (1, 1))(y))
                if x.shape != y.shape:
                    x = norm()(conv(4 * channels, (1, 1), strides)(x))
                x = nn.relu(x + y)
        x = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return x.astype(jnp.float32)


class WideResNet164(nn.Module):
    """WRN-16-4: images `(batch, 32, 32, 3)` to logits."""

    num_classes: int = 10
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = conv(16, (3, 3))(x)
        for group, channels in enumerate((64, 128, 256)):
            for block in range(2):
                strides = (2, 2) if group > 0 and block == 0 else (1, 1)
                y = nn.relu(norm()(x))
                if x.shape[-1] != channels:
                    x = conv(channels, (1, 1), strides)(y)
                y = nn.relu(norm()(conv(channels, (3, 3), strides)(y)))
                x = x + conv(channels, (3, 3))(y)
        x = nn.relu(norm()(x)).mean((1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def resnet50(per_device: int, mesh: Mesh) -> Any:
    """Returns the lowered step of a ResNet-50 with `per_device` images on each device."""
    return _lower_classifier(ResNet50(), (per_device * mesh.size, 224, 224, 3), mesh)


def wide_resnet(per_device: int, mesh: Mesh) -> Any:
    """Returns the lowered step of a WRN-16-4 with `per_device` images on each device."""
    return _lower_classifier(WideResNet164(), (per_device * mesh.size, 32, 32, 3), mesh)


def transformer(model: Transformer, per_device: int, mesh: Mesh) -> Any:
    """Returns the lowered step of a language model: AdamW, clipped, mean loss and gradient."""
    clip, adamw = optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1)
    optimizer = optax.chain(clip, adamw)
    tokens = jax.ShapeDtypeStruct((per_device * mesh.size, model.context + 1), np.int32)

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, tokens[:, :-1], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(state: Any, tokens: jax.Array) -> Any:
        params, opt_state = state
        loss, gradient = jax.value_and_grad(loss_fn)(params, tokens)
        loss, gradient = lax.pmean((loss, gradient), AXIS_NAME)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def init(tokens: jax.Array) -> Any:
        params = model.init(jax.random.key(0), tokens[:1, :-1], train=False)["params"]
        return params, optimizer.init(params)

    return _lower(step, jax.eval_shape(init, tokens), tokens, mesh)


def _lower_classifier(model: nn.Module, shape: Sequence[int], mesh: Mesh) -> Any:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 1000, 100_000)
    optimizer = optax.sgd(schedule, momentum=MOMENTUM, nesterov=True)
    batch = {
        "image": jax.ShapeDtypeStruct(tuple(shape), jnp.bfloat16),
        "label": jax.ShapeDtypeStruct((shape[0],), np.int32),
    }

    def loss_fn(params: Any, batch_stats: Any, batch: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, new = model.apply(variables, batch["image"], mutable=["batch_stats"])
        one_hot = jax.nn.one_hot(batch["label"], logits.shape[-1])
        loss = optax.softmax_cross_entropy(logits, one_hot).mean()
        penalty = sum(jnp.sum(x**2) for x in jax.tree.leaves(params) if x.ndim > 1)
        return loss + L2 * 0.5 * penalty, (new["batch_stats"], logits, loss)

    def step(state: Any, batch: Any) -> Any:
        params, batch_stats, opt_state = state
        gradient, (batch_stats, logits, loss) = jax.grad(loss_fn, has_aux=True)(
            params, batch_stats, batch
        )
        gradient = lax.pmean(gradient, AXIS_NAME)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        metrics = lax.pmean({"loss": loss, "accuracy": accuracy}, AXIS_NAME)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), metrics

    def init(image: jax.Array) -> Any:
        variables = model.init(jax.random.key(0), image[:1])
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    return _lower(step, jax.eval_shape(init, batch["image"]), batch, mesh)


def _lower(step: Callable, state: Any, batch: Any, mesh: Mesh) -> Any:
    """Lowers `step(state, batch)` mapped as `batchgrow.layout` maps ours."""
    same, split = PartitionSpec(), PartitionSpec(AXIS_NAME)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(same, split), out_specs=same, check_vma=False)
    shardings = tuple(NamedSharding(mesh, spec) for spec in (same, split))
    compiled = jax.jit(mapped, in_shardings=shardings, out_shardings=shardings[0], donate_argnums=0)
    return compiled.lower(state, batch)
