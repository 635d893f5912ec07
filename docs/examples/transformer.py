"""A transformer on the text of Python's manual, with a Stream over a list."""

from pydoc_data.topics import topics  # the text that help() shows

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState

from batchgrow import FixedPlan, Recipe, Stream, curves, decay, grow, take, to_optax

LENGTH, N = 32, 2048  # characters that the model sees; examples
text = np.frombuffer("".join(topics.values()).encode("ascii", "replace"), np.uint8)
source = [{"text": text[i * LENGTH : (i + 1) * LENGTH + 1]} for i in range(N)]
stream = Stream(len(source), seed=0)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, text):
        causal = nn.make_causal_mask(text)
        x = nn.Embed(128, 64)(text) + nn.Embed(LENGTH, 64)(np.arange(LENGTH))[None]
        x += nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x), mask=causal)
        x += nn.Dense(64)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
        return nn.Dense(128)(nn.LayerNorm()(x))


model = Transformer()
params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, LENGTH), np.uint8))


@jax.jit
def loss_fn(params, text):
    logits = model.apply(params, text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


@jax.jit
def train_step(state, text):
    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, text))


def fit(plan: FixedPlan) -> str:
    tx = optax.adam(to_optax(plan))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    for point in plan.points():
        batch = take(source, stream.indices(point.positions))
        state = train_step(state, batch["text"])
    loss = loss_fn(state.params, take(source, range(N))["text"])
    return f"{state.step} updates, loss {loss:.3f}"


if __name__ == "__main__":
    curve = curves.with_warmup(curves.cosine(0.003, num_epochs=6), warmup_epochs=0.5)
    recipe = Recipe(16, 0.9, curve, num_examples=N, num_epochs=6, optimizer="adam")
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=64)))
