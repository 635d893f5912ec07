"""The classification task: what it checks, its losses and metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TinyNet

from batchgrow.data.augment import views
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


def test_a_label_that_is_no_class_has_no_loss():
    """Data that are not in memory are not checked before; their loss must not be 0."""
    losses = cross_entropy(jnp.zeros((4, 3)), jnp.array([0, 2, 3, -1]))
    np.testing.assert_allclose(losses, [np.log(3), np.log(3), np.nan, np.nan], rtol=1e-6)


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


def test_augmentations_are_for_training_and_stay_out_of_evaluation():
    plain = Classification(MODEL, CLASSES)
    examples, keys = make_split(channels=3), jax.random.split(jax.random.key(1), 6)
    variables = plain.init(jax.random.key(0), examples)
    for field in ({"brightness": 0.4}, {"random_erasing": 1.0}, {"cutout": 4}):
        task = Classification(MODEL, CLASSES, **field)
        task.check(examples, "train")

        @jax.jit
        def run(variables, keys, tasks=(task, plain)):
            trained = [t.loss(variables, examples, keys, train=True).losses for t in tasks]
            tested = [t.loss(variables, examples, None, train=False).losses for t in tasks]
            return trained, tested

        trained, tested = run(variables, keys)
        assert not np.allclose(*trained)
        np.testing.assert_array_equal(*tested)


def test_views_average_probabilities():
    """The loss is that of the mean probabilities of the ten views; training is as before."""
    examples = make_split()
    one, ten = (Classification(MODEL, CLASSES, test_views=v) for v in ("one", "crops_flips"))
    variables = one.init(jax.random.key(0), examples)
    seen = [
        jnp.asarray(examples["image"])[:, rows][:, :, columns]
        for rows, columns in zip(*views(8, 8, "crops_flips"), strict=True)
    ]
    logits = [MODEL.apply(variables, image / 255.0, train=False) for image in seen]
    mean = np.mean([jax.nn.softmax(found) for found in logits], axis=0)
    found = ten.loss(variables, examples, None, train=False)
    expected = -np.log(mean[np.arange(6), examples["label"]])
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.metrics["correct"], mean.argmax(-1) == examples["label"])
    assert found.model_state.keys() == {"batch_stats"}
    np.testing.assert_allclose(ten.probabilities(variables, examples), mean, rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 6)
    trained = [task.loss(variables, examples, keys, train=True) for task in (one, ten)]
    jax.tree.map(np.testing.assert_array_equal, *trained)


@pytest.mark.parametrize(
    ("fields", "shape", "dtype", "message"),
    [
        ({"saturation": 0.1}, (8, 8, 1), np.uint8, "task.saturation 0.1 needs red, green and blue"),
        ({"contrast": 0.1}, (8, 8, 3), np.float32, "task.contrast 0.1 needs pixels 0..255"),
        ({"random_erasing": 0.5}, (8, 8, 3), np.float32, "task.random_erasing 0.5 needs pixels"),
        ({"cutout": 2}, (8,), np.float32, r"task.cutout 2 needs images .* \(8,\); set it to 0"),
        ({"test_views": "flip"}, (8,), np.uint8, "task.test_views 'flip' needs images"),
        ({"test_views": "crops_flips"}, (4, 8, 1), np.uint8, "task.test_views 'crops_flips' refl"),
    ],
)
def test_data_that_cannot_be_changed_like_this(fields, shape, dtype, message):
    split = {"image": np.zeros((6, *shape), dtype), "label": make_split()["label"]}
    with pytest.raises(ValueError, match=message):
        Classification(MODEL, CLASSES, **fields).check(split, "train")


def test_fields_out_of_their_range():
    for fields, message in (
        ({"brightness": 1.5}, "task.brightness 1.5 must be in 0..1"),
        ({"cutout": -1}, "task.cutout -1 must be 0 or more"),
        ({"test_views": "ten"}, "unknown task.test_views 'ten'; choose one, flip, crops_flips"),
    ):
        with pytest.raises(ValueError, match=message):
            Classification(MODEL, CLASSES, **fields)
