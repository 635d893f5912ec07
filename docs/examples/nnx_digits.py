"""A Flax NNX loop with a constant batch size, and with its growth plan: a network on the digits."""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from batchgrow import CompileAhead, FixedPlan, Recipe, Stream, curves, decay, grow, to_optax
from batchgrow.models.nnx import GhostBatchNorm

table, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(1797)
inputs, targets = table.astype(np.float32)[order] / 16, labels.astype(np.int32)[order]
N = 1437  # The rest is for testing.


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.norm = GhostBatchNorm(64, ghost_batch_size=16, rngs=rngs)  # was: nnx.BatchNorm
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.norm(self.hidden(x))))

    def loss(self, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(self(x), y).mean()


def fit(plan: FixedPlan) -> str:
    model = Net(rngs=nnx.Rngs(0))
    tx = optax.sgd(to_optax(plan), momentum=0.9)  # was: optax.sgd(schedule, momentum=0.9)
    graph, state = nnx.split((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))

    def step(state, x, y):
        model, optimizer = nnx.merge(graph, state)
        optimizer.update(model, nnx.grad(Net.loss)(model, x, y))
        return nnx.state((model, optimizer))

    def build(size):  # was: step = jax.jit(step)
        return jax.jit(step).lower(state, inputs[:size], targets[:size]).compile()

    stream = Stream(N, seed=0)
    with CompileAhead(build, order=plan.batch_sizes()) as steps:
        for point in plan.points():  # was: for index in batches of a shuffled epoch
            index = stream.indices(point.positions)
            state = steps.get(point.batch_size)(state, inputs[index], targets[index])
    model, _ = nnx.merge(graph, state)
    model.eval()
    loss, logits = model.loss(inputs[:N], targets[:N]), model(inputs[N:])
    accuracy = (logits.argmax(-1) == targets[N:]).mean()
    return f"{plan.num_updates} updates, train loss {loss:.4f}, test accuracy {accuracy:.3f}"


if __name__ == "__main__":
    recipe = Recipe(16, 0.9, curves.step(0.1, (10, 15, 18), 0.25), num_examples=N, num_epochs=20)
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=256)))
