"""Batch norm whose statistics do not depend on the batch size; the batch grows by hand."""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_wine

from batchgrow import GhostBatchNorm

table, labels = load_wine(return_X_y=True)  # 178 rows, 13 columns, 3 classes
order = np.random.default_rng(0).permutation(len(labels))
table, labels = table.astype(np.float32)[order], labels[order]
N = 128  # the other 50 are for testing


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        for _ in range(2):  # the first puts the table's columns on one scale
            x = GhostBatchNorm(ghost_batch_size=16, use_running_average=not train)(x)
            x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(3)(x)


model, tx = MLP(), optax.sgd(0.05, momentum=0.9)


@jax.jit
def train_step(variables, opt_state, rows, targets):
    def loss_fn(params):
        both = {**variables, "params": params}
        logits, new = model.apply(both, rows, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return loss.mean(), new["batch_stats"]

    grads, batch_stats = jax.grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(grads, opt_state)
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": batch_stats}, opt_state


if __name__ == "__main__":
    variables = model.init(jax.random.key(0), table[:16], train=False)
    opt_state = tx.init(variables["params"])
    rng = np.random.default_rng(0)
    for batch_size, num_epochs in ((16, 20), (32, 10), (128, 10)):
        for _ in range(num_epochs):
            for index in rng.permutation(N).reshape(-1, batch_size):
                rows, targets = table[index], labels[index]
                variables, opt_state = train_step(variables, opt_state, rows, targets)
        predicted = model.apply(variables, table[N:], train=False).argmax(-1)
        print(f"batch {batch_size:3}: test accuracy {(predicted == labels[N:]).mean():.2f}")
