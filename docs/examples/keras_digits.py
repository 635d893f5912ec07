"""Keras with a constant batch size, and with its growth plan: a network on the digits."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from batchgrow import FixedPlan, Recipe, curves, decay, grow
from batchgrow.keras import PlanCallback, PlanDataset

table, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(1797)
inputs, targets = (table / 16).astype(np.float32)[order], labels[order]
N = 1437  # The rest is for testing.


def fit(plan: FixedPlan) -> str:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"])
    data = PlanDataset(plan, (inputs[:N], targets[:N]), seed=0)
    callback = PlanCallback(plan)  # was: LearningRateScheduler
    model.fit(data, callbacks=[callback], verbose=0)  # was: fit(x, y, batch_size=16, epochs=20)
    train_loss, _ = model.evaluate(inputs[:N], targets[:N], verbose=0)
    _, accuracy = model.evaluate(inputs[N:], targets[N:], verbose=0)
    return f"{plan.num_updates} updates, train loss {train_loss:.4f}, test accuracy {accuracy:.3f}"


if __name__ == "__main__":
    curve = curves.step(0.1, (10, 15, 18), 0.25)
    recipe = Recipe(16, 0.9, curve, num_examples=N, num_epochs=20)
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=256)))
