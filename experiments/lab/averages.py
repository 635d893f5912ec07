"""Averages of finished classifiers: of their probabilities, or of their weights. No flags."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from batchgrow.experiment import Experiment
from batchgrow.layout import AXIS_NAME
from batchgrow.run.checkpoints import positions_of
from batchgrow.tasks.classification import Classification
from experiments.lab.solutions import experiment_of_run, first_examples, variables_of

PASS = 1000  # test examples of one call
STATISTICS = 100  # ghost batches that renew the running statistics
Variables = Mapping[str, Any]


class Scores(NamedTuple):
    """How good some probabilities are: the share of right answers, and the cross entropy."""

    accuracy: float
    loss: float


def score(probabilities: np.ndarray, labels: np.ndarray) -> Scores:
    """Scores of probabilities `(examples, classes)` for the labels `(examples,)`."""
    right = probabilities.argmax(1) == labels
    of_label = probabilities[np.arange(len(labels)), labels]
    return Scores(float(right.mean()), float(-np.log(np.maximum(of_label, 1e-30)).mean()))


def last(folder: str, count: int) -> tuple[Experiment, list[Variables]]:
    """Returns the experiment of a run folder, and its last checkpoints, the newest last.

    Raises:
      ValueError: if the folder has fewer checkpoints, or the run is no classifier.
    """
    experiment = experiment_of_run(folder)
    positions = positions_of(folder)[-count:]
    if len(positions) < count:
        raise ValueError(
            f"{folder} has {len(positions)} checkpoints and not {count}; train with "
            f"run.keep_checkpoints={count} or more, and a smaller run.checkpoint_every_epochs"
        )
    if not isinstance(task_of(experiment), Classification):
        raise ValueError(f"{folder}: only classifiers have probabilities to average")
    return experiment, [variables_of(experiment, f"{folder}/checkpoints/{at}") for at in positions]


def task_of(experiment: Experiment) -> Any:
    """The task, without what a transfer adds to it."""
    return getattr(experiment.task, "task", experiment.task)


def with_views(experiment: Experiment, views: str) -> Experiment:
    """Returns the experiment with other views of a test image.

    Raises:
      ValueError: if there are no such views, or not of such examples.
    """
    task = dataclasses.replace(task_of(experiment), test_views=views)
    task.check(experiment.test_data.gather(np.arange(1)), "test")
    return dataclasses.replace(experiment, task=task)


def labels_of(experiment: Experiment) -> np.ndarray:
    """The labels of the test set."""
    return np.concatenate([part["label"] for part in _test_examples(experiment)])


def probabilities(experiment: Experiment, variables: Variables) -> np.ndarray:
    """Returns the probabilities of the test examples, float32 `(examples, classes)`."""
    of_part = jax.jit(task_of(experiment).probabilities)
    return np.concatenate([of_part(variables, part) for part in _test_examples(experiment)])


def _test_examples(experiment: Experiment) -> Iterator[Any]:
    """The test set in parts, on the host."""
    data = experiment.test_data
    for start in range(0, data.num_examples, PASS):
        indices = np.arange(start, min(start + PASS, data.num_examples))
        yield jax.tree.map(np.asarray, data.gather(indices))


def mean_weights(experiment: Experiment, several: Sequence[Variables]) -> Variables:
    """Returns the mean of the parameters, with running statistics that are renewed for it.

    The statistics begin with the mean of the given ones. They then see ghost batches of the
    training set in training mode, which changes no parameter (Izmailov et al. 2018, Section 3.2).

    Raises:
      ValueError: if the data are not held in memory.
    """
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0, dtype=np.float32), *several)
    if set(mean) == {"params"}:
        return mean
    data, ghost = experiment.train_data, experiment.ghost_batch_size
    order = np.random.default_rng(0).permutation(data.num_examples)
    order = order[: len(order) // ghost * ghost][: STATISTICS * ghost]
    first_examples(data, 1)  # says so if they are not in memory
    step = _renewing(task_of(experiment))
    for indices in order.reshape(-1, ghost):
        mean = step(mean, data.gather(indices))
    return jax.device_get(mean)


def _renewing(task: Any) -> Callable[[Variables, Any], Variables]:
    """Returns the function that lets the running statistics see one ghost batch."""

    @partial(jax.vmap, in_axes=(None, 0), axis_name=AXIS_NAME)  # Norms name the device axis.
    def state_after(variables: Variables, examples: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), len(examples["label"]))
        return task.loss(variables, examples, keys, train=True).model_state

    @jax.jit
    def step(variables: Variables, examples: Any) -> Variables:
        one = jax.tree.map(lambda x: jnp.asarray(x)[None], examples)
        state = jax.tree.map(lambda x: x[0], state_after(variables, one))
        return {"params": variables["params"], **state}

    return step
