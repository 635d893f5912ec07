"""A loop with an optax cosine schedule, and with its growth plan: an MLP."""

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_breast_cancer

from batchgrow import FixedPlan, decay, from_optax, grow, to_optax

table, labels = load_breast_cancer(return_X_y=True)  # 569 rows, 30 columns
order = np.random.default_rng(0).permutation(len(labels))
table = ((table - table.mean(0)) / table.std(0)).astype(np.float32)[order]
labels = labels.astype(np.float32)[order]
N = 455  # the rest is for testing


class MLP(nn.Module):
    @nn.compact
    def __call__(self, rows):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(rows)))[:, 0]


model = MLP()
params = jax.jit(model.init)(jax.random.key(0), table[:1])


@jax.jit
def loss_fn(params, rows, targets):
    return optax.sigmoid_binary_cross_entropy(model.apply(params, rows), targets).mean()


@jax.jit
def train_step(state, rows, targets):
    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, rows, targets))


def fit(plan: FixedPlan) -> str:
    tx = optax.sgd(to_optax(plan), momentum=0.9)  # was: optax.sgd(cosine, ...)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    rng = np.random.default_rng(0)
    stream = np.concatenate([rng.permutation(N) for _ in range(21)])
    for point in plan.points():  # was: for update in range(1137)
        index = stream[point.positions]
        state = train_step(state, table[index], labels[index])
    train_loss = loss_fn(state.params, table[:N], labels[:N])
    test_loss = loss_fn(state.params, table[N:], labels[N:])
    return f"{state.step} updates, train loss {train_loss:.3f}, test {test_loss:.3f}"


if __name__ == "__main__":
    cosine = optax.cosine_decay_schedule(0.005, decay_steps=1137)
    recipe = from_optax(cosine, batch_size=8, momentum=0.9, num_examples=N, num_updates=1137)
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=64)))
