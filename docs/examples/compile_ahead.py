"""A step of one's own: the next batch size compiles while the current one trains."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_diabetes

from batchgrow import CompileAhead

table, target = load_diabetes(return_X_y=True)  # 442 rows, 10 columns
table = (table / table.std(0)).astype(np.float32)
target = ((target - target.mean()) / target.std()).astype(np.float32)
SIZES = (32, 128)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (256, 256, 256, 256):
            x = nn.gelu(nn.LayerNorm()(nn.Dense(width)(x)))
        return nn.Dense(1)(x)[:, 0]


def train_step(state, rows, targets):
    def loss_fn(params):
        return jnp.square(state.apply_fn(params, rows) - targets).mean()

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


def build(batch_size):
    rows = jax.ShapeDtypeStruct((batch_size, 10), np.float32)
    targets = jax.ShapeDtypeStruct((batch_size,), np.float32)
    return jax.jit(train_step, donate_argnums=0).lower(state, rows, targets).compile()


if __name__ == "__main__":
    model, rng = MLP(), np.random.default_rng(0)
    params, tx = jax.jit(model.init)(jax.random.key(0), table[:1]), optax.adam(1e-4)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    with CompileAhead(build, order=SIZES) as steps:
        for batch_size in SIZES:
            for _ in range(64_000 // batch_size):
                index = rng.choice(len(table), batch_size, replace=False)
                state = steps.get(batch_size)(state, table[index], target[index])
            times = steps.times[batch_size]
            print(f"batch {batch_size:3}: compiled in {times.compile_seconds:.2f} s, ", end="")
            print(f"waited for {times.waited_seconds:.2f} s")
