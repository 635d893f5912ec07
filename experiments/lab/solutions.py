"""What is measured of the solution that a run folder holds. It obeys --data_dir and --download."""

import json
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from batchgrow import landscape
from batchgrow.config import make_experiment
from batchgrow.config.fields import base_config
from batchgrow.data.datasets import InMemory
from batchgrow.experiment import Experiment
from batchgrow.report import find_runs, read_run
from batchgrow.run.variables import read_variables
from batchgrow.tasks import Variables
from batchgrow.tasks.transfer import by_name, name_of
from experiments.launch import obey_data_flags

LINE = (-0.5, 1.5)  # where the line begins and ends


def load(folder: str, position: int | None = None) -> tuple[Experiment, Variables]:
    """Returns the experiment of a run folder, and the variables of a checkpoint.

    Args:
      folder: the run folder.
      position: the examples seen at the checkpoint; None for the newest.

    Raises:
      ValueError: if the folder is no run folder, or has no such checkpoint.
    """
    experiment = experiment_of_run(folder)
    place = folder if position is None else f"{folder}/checkpoints/{position}"
    return experiment, variables_of(experiment, place)


def variables_of(experiment: Experiment, place: str) -> Variables:
    """Returns the variables of a checkpoint in the structure that the task gives them.

    A checkpoint itself has dictionaries with texts as keys, whatever the task has.

    Args:
      experiment: that of the run.
      place: as in `read_variables`.

    Raises:
      ValueError: if there is no such checkpoint, or it has other arrays than the task.
    """
    task, example = experiment.task, experiment.train_data.example
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), example)
    own = dict(jax.eval_shape(task.init, jax.random.key(0), one))
    saved = by_name(read_variables(place))
    for name, leaf in by_name(own).items():
        if name not in saved or saved[name].shape != leaf.shape:
            found = f"has the shape {saved[name].shape}" if name in saved else "is missing"
            raise ValueError(
                f"{place}: {name} {found}, but the task has it with the shape {leaf.shape}; use "
                "the task as it was when the run was trained"
            )
    return jax.tree_util.tree_map_with_path(lambda path, _: saved[name_of(path)], own)


def experiment_of_run(folder: str) -> Experiment:
    """Returns the experiment that a run folder records.

    Raises:
      ValueError: if the folder is no run folder.
    """
    runs = find_runs([folder])
    if runs != [str(epath.Path(folder))]:
        raise ValueError(f"{folder} is a folder of runs; give one of them: {', '.join(runs)}")
    read_run(folder)  # Checks the files. Its config has texts in place of infinite numbers.
    saved = json.loads((epath.Path(folder) / "config.json").read_text())
    config: Any = ConfigDict(_merged(base_config().to_dict(), saved))
    config.init.run = config.init.layers = None  # The checkpoint has what they led to.
    obey_data_flags(config)  # The folder may come from another machine.
    return make_experiment(config)


def _merged(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `default`, section by section; lists become tuples."""
    made = dict(default)
    for name, value in given.items():
        if isinstance(value, dict):
            value = _merged(made.get(name) or {}, value)
        made[name] = tuple(value) if isinstance(value, list) else value
    return made


def measure(
    folder: str,
    epsilons: list[float],
    num_examples: int,
    *,
    num_steps: int = 30,
    position: int | None = None,
) -> dict[str, Any]:
    """Measures the solution of a run.

    Returns:
      {"examples": how many were used, "loss", "sharpness": {epsilon: value}, "eigenvalues",
      "weights", "distance": [[updates, distance, path length], ...]}, JSON.

    Raises:
      ValueError: as `load`, or if the training set is not held in memory.
    """
    experiment, variables = load(folder, position)
    examples = first_examples(experiment.train_data, num_examples)
    objective, x = landscape.objective_of(experiment.task, variables, examples)
    found = landscape.spectrum(objective, x, num_steps) if num_steps else None
    rows = [row for row in read_run(folder).rows if "distance" in row]
    count = len(jax.tree.leaves(examples)[0])
    return {
        "examples": count - count % landscape.CHUNK_SIZE,
        "loss": float(objective.value_and_gradient(x)[0]),
        "sharpness": {
            f"{epsilon:g}": landscape.sharpness(objective, x, epsilon) for epsilon in epsilons
        },
        "eigenvalues": [] if found is None else found.eigenvalues.tolist(),
        "weights": [] if found is None else found.weights.tolist(),
        "distance": [[row["updates"], row["distance"], row["path_length"]] for row in rows],
    }


def first_examples(data: Any, num_examples: int) -> Any:
    """The first examples of a data set as arrays.

    Raises:
      ValueError: if the data are not held in memory.
    """
    if not isinstance(data, InMemory):
        raise ValueError("run.input is not 'resident': only data in memory can be measured")
    return data.gather(np.arange(min(num_examples, data.num_examples)))


def line_between(
    first: str, second: str, num_examples: int, num_places: int, *, position: int | None = None
) -> dict[str, list[float]]:
    """Returns the training and the test loss along the line between two solutions.

    Args:
      first, second: run folders.
      num_examples: of each split.
      num_places: of the line, from -0.5 to 1.5; the solutions are at 0 and 1.
      position: of both checkpoints, as in `load`.

    Returns:
      {"place", "train_loss", "test_loss"}.

    Raises:
      ValueError: if the two runs have different models.
    """
    (experiment, start), (_, end) = load(first, position), load(second, position)
    if jax.tree.map(np.shape, start) != jax.tree.map(np.shape, end):
        raise ValueError(f"{first} and {second} have different models; there is no line between")
    places = np.linspace(*LINE, num_places).tolist()
    found = {"place": places}
    for part, data in (("train", experiment.train_data), ("test", experiment.test_data)):
        examples = first_examples(data, num_examples)

        @jax.jit
        def loss(variables: Any, examples: Any = examples) -> jax.Array:
            return experiment.task.loss(variables, examples, None, train=False).losses.mean()

        found[f"{part}_loss"] = landscape.along_line(loss, start, end, places)
    return found
