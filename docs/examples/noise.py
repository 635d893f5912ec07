"""A loop that measures its gradient noise, and whose batch follows it: an MLP."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

from batchgrow import Recipe, Stream, curves, follow
from batchgrow.noise import accumulate_noise, noise_scale_of

table, labels = load_breast_cancer(return_X_y=True)  # 569 rows, 30 columns
table = ((table - table.mean(0)) / table.std(0)).astype(np.float32)
N, PIECE = len(table), 4  # a batch is summed from pieces of 4 rows


class MLP(nn.Module):
    @nn.compact
    def __call__(self, rows):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(rows)))[:, 0]


model = MLP()


def optimizer(num_pieces):
    noise = accumulate_noise(PIECE, num_pieces, horizon=N, num_examples=N)
    steps = optax.MultiSteps(optax.sgd(1.0, momentum=0.9), every_k_schedule=num_pieces)
    return optax.chain(noise, steps.gradient_transformation())


@partial(jax.jit, static_argnames="num_pieces")
def update(params, opt_state, rows, targets, rate, num_pieces):
    def loss_fn(params, rows, targets):
        return optax.sigmoid_binary_cross_entropy(model.apply(params, rows), targets).mean()

    for k in range(num_pieces):
        piece = slice(k * PIECE, (k + 1) * PIECE)
        gradient = jax.grad(loss_fn)(params, rows[piece], targets[piece])
        step, opt_state = optimizer(num_pieces).update(gradient, opt_state, params)
    return optax.apply_updates(params, jax.tree.map(lambda x: rate * x, step)), opt_state


if __name__ == "__main__":
    recipe = Recipe(8, 0.9, curves.constant(0.002), num_examples=N, num_epochs=30)
    plan, stream = follow(recipe, max_batch_size=64, decide_every_epochs=3.0), Stream(N, seed=0)
    params = model.init(jax.random.key(0), table[:1])
    opt_state, history, measured = optimizer(2).init(params), [], {}
    while segment := plan.next(history, measured):
        history.append(segment)
        for point in plan.segment_points(history):
            index, K = stream.indices(point.positions), segment.batch_size // PIECE
            data = table[index], labels[index], point.learning_rate
            params, opt_state = update(params, opt_state, *data, num_pieces=K)
        measured["gradient_noise_scale"] = noise_scale_of(opt_state) or 0.0  # 0: unknown
        print(segment.batch_size, round(measured["gradient_noise_scale"]))
