"""Flax NNX: ghost batch norm, and a step of your own that compiles ahead."""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_wine

from batchgrow import CompileAhead
from batchgrow.models.nnx import GhostBatchNorm

table, labels = load_wine(return_X_y=True)  # 178 rows, 13 columns, 3 classes
order = np.random.default_rng(0).permutation(len(labels))
table, labels = table.astype(np.float32)[order], labels.astype(np.int32)[order]
N, SIZES = 128, (16, 32, 128)  # the other 50 rows are for testing


class MLP(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.norms, self.hidden = nnx.List([]), nnx.List([])
        for size in (13, 32):  # the first norm puts the columns on one scale
            self.norms.append(GhostBatchNorm(size, ghost_batch_size=16, rngs=rngs))
            self.hidden.append(nnx.Linear(size, 32, rngs=rngs))
        self.output = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        for norm, hidden in zip(self.norms, self.hidden, strict=True):
            x = nnx.relu(hidden(norm(x)))
        return self.output(x)


def train_step(state, rows, targets):
    model, optimizer = nnx.merge(graph, state)

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(rows), targets).mean()

    optimizer.update(model, nnx.grad(loss_fn)(model))
    return nnx.state((model, optimizer))


def build(batch_size):
    return jax.jit(train_step).lower(state, table[:batch_size], labels[:batch_size]).compile()


if __name__ == "__main__":
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))
    rng = np.random.default_rng(0)
    with CompileAhead(build, order=SIZES) as steps:
        for batch_size, num_epochs in zip(SIZES, (20, 10, 10), strict=True):
            for _ in range(num_epochs):
                for index in rng.permutation(N).reshape(-1, batch_size):
                    state = steps.get(batch_size)(state, table[index], labels[index])
            trained, _ = nnx.merge(graph, state)
            trained.eval()
            accuracy = (trained(table[N:]).argmax(-1) == labels[N:]).mean()
            print(f"batch {batch_size:3}: test accuracy {accuracy:.2f}")
