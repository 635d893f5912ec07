"""The Keras adapter against the real library, with the PyTorch or JAX backend."""

import importlib.util
import os

import numpy as np
import pytest

from batchgrow import Recipe, Stream, curves, grow

if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras  # noqa: E402

jax = pytest.importorskip("jax")  # conftest.py makes it strict, which Keras is not.

from batchgrow.keras import PlanCallback, PlanDataset  # noqa: E402

N = 60
CURVE = curves.step(0.05, (2, 3), 0.5)
PLAN = grow(Recipe(6, 0.9, CURVE, num_examples=N, num_epochs=4), max_batch_size=24)
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(N, 4)).astype(np.float32)
TARGETS = INPUTS @ RNG.normal(size=(4, 1)).astype(np.float32)
STARTS = [point.start_examples for point in PLAN.points()]


@pytest.fixture(autouse=True)
def lenient_jax():
    with jax.numpy_rank_promotion("allow"):
        yield


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))


def make_model(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    options = {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9)} | options
    model.compile(loss="mse", **options)
    return model


class Recorded:
    """The data set behind a function, which remembers what was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, indices):
        self.asked.append(indices.tolist())
        return INPUTS[indices], TARGETS[indices]


def fit(model, examples_seen=0, data=None, callback=None):
    recorder, source = Recorder(), Recorded()
    if data is None:
        data = PlanDataset(PLAN, source, seed=3, examples_seen=examples_seen, num_examples=N)
    callback = callback or PlanCallback(PLAN, examples_seen)
    model.fit(data, epochs=1, verbose=0, callbacks=[callback, recorder])
    return recorder, source, callback


def expected_updates(examples_seen=0) -> list[list[int]]:
    stream = Stream(N, seed=3)
    points = PLAN.points(examples_seen)
    return [stream.indices(list(point.positions)).tolist() for point in points]


def test_fit_follows_the_plan() -> None:
    recorder, source, callback = fit(make_model())
    first, *asked = source.asked  # Keras builds the model with a batch that it does not train on.
    assert first == asked[0]
    assert asked[: PLAN.num_updates] == expected_updates()
    planned = [np.float32(point.learning_rate) for point in PLAN.points()]
    assert recorder.rates == planned  # Keras keeps the learning rate in float32.
    assert callback.examples_seen == PLAN.end_examples


def test_training_is_that_of_a_plain_loop() -> None:
    """Each example once and in order: another order ends elsewhere."""
    model = make_model()
    weight, bias = (np.asarray(w, np.float64) for w in model.get_weights())
    velocities = np.zeros((4, 1)), np.zeros(1)
    for point, indices in zip(PLAN.points(), expected_updates(), strict=True):
        x, y = INPUTS[indices].astype(np.float64), TARGETS[indices]
        error = 2 * (x @ weight + bias - y) / len(indices)
        gradients = x.T @ error, error.sum(0)
        velocities = tuple(
            0.9 * v - point.learning_rate * g for v, g in zip(velocities, gradients, strict=True)
        )
        weight, bias = weight + velocities[0], bias + velocities[1]
    fit(model, data=PlanDataset(PLAN, (INPUTS, TARGETS), seed=3))
    for mine, other in zip(model.get_weights(), (weight, bias), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_every_batch_is_found_by_its_number() -> None:
    data = PlanDataset(PLAN, (np.arange(N), TARGETS), seed=3)
    assert len(data) == PLAN.num_updates
    assert [data[i][0].tolist() for i in range(len(data))] == expected_updates()
    with pytest.raises(IndexError, match="28 updates left, but fit asks for batch 99: give fit"):
        data[99]


@pytest.mark.parametrize("update", [7, 20, 24, len(STARTS) - 1])
def test_data_resumes(update: int) -> None:
    data = PlanDataset(PLAN, np.arange(N), seed=3, examples_seen=STARTS[update])
    assert [data[i].tolist() for i in range(len(data))] == expected_updates(STARTS[update])


def test_data_of_a_finished_run_has_a_batch_to_build_the_model() -> None:
    data = PlanDataset(PLAN, np.arange(N), seed=3, examples_seen=PLAN.end_examples)
    assert len(data) == 0
    assert data[0].tolist() == expected_updates()[-1]


def test_resume_ends_with_the_same_weights(tmp_path) -> None:
    whole = make_model()
    recorder, _, _ = fit(whole)

    class Stop(PlanCallback):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.examples_seen == STARTS[22]:
                self.model.save(tmp_path / "model.keras")

    callback = Stop(PLAN)
    fit(make_model(), callback=callback)
    resumed = keras.models.load_model(tmp_path / "model.keras")
    rest, _, _ = fit(resumed, examples_seen=STARTS[22])
    assert rest.rates == recorder.rates[22:]
    for mine, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_errors() -> None:
    with pytest.raises(ValueError, match="made for num_examples=60, but the data set has 50"):
        PlanDataset(PLAN, (INPUTS[:50], TARGETS[:50]))
    with pytest.raises(ValueError, match="num_examples is missing"):
        PlanDataset(PLAN, lambda indices: None)
    with pytest.raises(ValueError, match="momentum=0.0, but the plan has 0.9"):
        fit(make_model(optimizer=keras.optimizers.SGD(0.05)))
    accumulating = keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2 must be 1"):
        fit(make_model(optimizer=accumulating))
    with pytest.raises(ValueError, match="the run is complete, with all 252 examples"):
        fit(make_model(), examples_seen=PLAN.end_examples)
    with pytest.raises(ValueError, match="inside an update"):
        PlanCallback(PLAN, 1)
