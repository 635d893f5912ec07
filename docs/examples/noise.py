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


model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(1)])


def optimizer(num_pieces):
    noise = accumulate_noise(PIECE, num_pieces, horizon=3 * N, num_examples=N)
    steps = optax.MultiSteps(optax.sgd(1.0, momentum=0.9), every_k_schedule=num_pieces)
    return optax.chain(noise, steps.gradient_transformation())


@partial(jax.jit, static_argnames="num_pieces")
def update(params, opt_state, rows, targets, rate, num_pieces):
    def loss_fn(params, rows, targets):
        return optax.sigmoid_binary_cross_entropy(model.apply(params, rows)[:, 0], targets).mean()

    def add(opt_state, piece):
        gradient = jax.grad(loss_fn)(params, *piece)
        step, opt_state = optimizer(num_pieces).update(gradient, opt_state, params)
        return opt_state, step

    pieces = rows.reshape(num_pieces, PIECE, -1), targets.reshape(num_pieces, PIECE)
    opt_state, steps = jax.lax.scan(add, opt_state, pieces)  # all steps but the last are 0
    return jax.tree.map(lambda w, step: w + rate * step[-1], params, steps), opt_state


if __name__ == "__main__":
    recipe = Recipe(8, 0.9, curves.constant(0.002), num_examples=N, num_epochs=30)
    plan, stream = follow(recipe, max_batch_size=64, decide_every_epochs=3.0), Stream(N, seed=0)
    params = model.init(jax.random.key(0), table[:1])
    opt_state, history, measured = optimizer(2).init(params), [], {}
    while segment := plan.next(history, measured):
        history.append(segment)
        for point in plan.segment_points(history):
            index = stream.indices(point.positions)
            data = table[index], labels[index], point.learning_rate
            params, opt_state = update(params, opt_state, *data, len(index) // PIECE)
        scale = noise_scale_of(opt_state)  # None: unknown
        measured = {"gradient_noise_scale": scale} if scale else {}
        print(f"batch {segment.batch_size}, noise scale {scale}")
