"""The classification task: what it checks, its losses and metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TinyNet

from batchgrow.tasks.classification import Classification, cross_entropy

CLASSES = 3
MODEL = TinyNet(num_classes=CLASSES, ghost_batch_size=2)


def make_split(height: int = 8, width: int = 8, channels: int = 1) -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (6, height, width, channels), np.uint8)
    return {"image": image, "label": np.array([0, 1, 2, 0, 1, 2], np.int32)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothed_labels(smoothing):
    logits = np.random.default_rng(0).normal(size=(5, CLASSES)).astype(np.float32)
    labels = np.array([0, 1, 2, 1, 0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(5), labels] - smoothing * log_p.mean(-1)
    actual = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_labels_are_smoothed_in_training_only():
    task, plain = (Classification(MODEL, CLASSES, label_smoothing=s) for s in (0.3, 0.0))
    examples = make_split()
    variables = task.init(jax.random.key(0), examples)
    keys = jax.random.split(jax.random.key(1), 6)
    for train, keys_or_none in ((True, keys), (False, None)):
        smooth, sharp = (
            t.loss(variables, examples, keys_or_none, train=train).losses for t in (task, plain)
        )
        assert np.allclose(smooth, sharp) is not train


def test_the_model_sees_normalised_pixels():
    """Each channel with its own mean and deviation, as float32."""
    seen = []

    class Spy(TinyNet):
        def __call__(self, images, *, train):
            seen.append(images)
            return jnp.zeros((len(images), CLASSES))

    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    task = Classification(Spy(CLASSES, 2), CLASSES, mean, std)
    examples = make_split(channels=3)
    task.loss({"params": {}}, examples, None, train=False)
    np.testing.assert_allclose(
        seen[0], (examples["image"] - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-5
    )
    assert seen[0].dtype == jnp.float32


def test_metrics_are_those_of_the_sums():
    task = Classification(MODEL, CLASSES)
    metrics = task.summarize({"count": 8.0, "loss": 4.0, "correct": 6.0})
    assert metrics == {"loss": 0.5, "accuracy": 0.75}
    assert {metric.name for metric in task.metrics} == metrics.keys()
    assert (task.metrics[0].name, task.metrics[0].better) == ("accuracy", "higher")


@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 4)])
def test_images_too_small_to_be_padded_by_reflection(height, width):
    message = "'crop_flip' reflects 4 pixels .* needs images of 5 pixels a side or more"
    with pytest.raises(ValueError, match=message):
        Classification(MODEL, CLASSES, augment="crop_flip").check(make_split(height, width), "test")
    Classification(MODEL, CLASSES, augment="flip").check(make_split(height, width), "test")
    Classification(MODEL, CLASSES, augment="crop_flip").check(make_split(5, 5), "test")


def test_values_by_channel_must_be_as_many_as_channels():
    Classification(MODEL, CLASSES, mean=(1.0,), std=(1.0, 2.0, 3.0)).check(
        make_split(channels=3), ""
    )
    with pytest.raises(ValueError, match="task.std has 2 values and the images have 3 channels"):
        Classification(MODEL, CLASSES, std=(1.0, 2.0)).check(make_split(channels=3), "train")
