"""How large should the batch be? Measures the time of updates and the gradient noise.

    python -m experiments.batch_size --config=configs/digits.py

1. The time of an update at batch sizes 1, 2, 4, ... (or the ghost batch and its multiples), up to
   --max_batch_size, or else to the largest batch that fits into memory in one pass (on the CPU, to
   a tenth of the training set).
2. The gradient noise scale along the first --epochs of the recipe.
3. The answer: the batch size below which the hardware idles, the one above which examples are
   wasted, and a plan that grows between them, with its updates and hours. Also a figure, OUT.png.

Nothing else should run on the machine meanwhile.
"""

import copy
import dataclasses
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator

from absl import flags
from etils import epath

from batchgrow.config import ConfigDict
from batchgrow.config.data import open_data
from batchgrow.cost import share_of_peak
from batchgrow.devices import memory_limit
from batchgrow.experiment import Experiment
from batchgrow.layout import make_mesh
from batchgrow.plan import follow
from batchgrow.plan.noise import NOISE_SCALE
from batchgrow.run import environment
from experiments import advice, cli, synthetic
from experiments.launch import experiment_of, launch, obey_data_flags
from experiments.result_files import check_writable, write_result
from experiments.trials import piece_size_of
from experiments.watched import train_watched

_CONFIG = cli.config_flag()
_MAX_BATCH_SIZE = flags.DEFINE_integer(
    "max_batch_size", None, "The largest batch to time; None: memory's end, N/10 on the CPU."
)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "For the time of each batch size, about.")
_EPOCHS = flags.DEFINE_float("epochs", None, "Of the recipe to measure the noise; None: a tenth.")
_FACTOR = flags.DEFINE_float("factor", 1.0, "The plan's largest ratio of batch to noise scale.")
_OUT = flags.DEFINE_string("out", "runs/batch_size", "OUT.json and OUT.png.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of words.")

MEASUREMENTS = 20  # of the noise in the short run, if it is long enough


def main(_: list[str]) -> int:
    """Measures, and prints the answer."""
    config = _CONFIG.value
    obey_data_flags(config)
    experiment, plan = experiment_of(recipe_of(config, _EPOCHS.value)), config.plan
    recipe = experiment.plan.recipe
    following = follow(
        recipe,
        max_batch_size=plan.max_batch_size,
        factor=_FACTOR.value,
        decide_every_epochs=plan.decide_every_epochs,
        ladder=plan.ladder,
        batch_multiple=plan.batch_multiple or experiment.ghost_batch_size,
        exponent=plan.exponent,
    )
    out = epath.Path(_OUT.value)
    check_writable(out)
    times = dict(update_times(experiment))
    peak = share_of_peak(experiment, make_mesh(experiment.execution.num_devices))
    found = advice.answer(times, measured_noise(experiment), following, peak)
    found |= {"config": config.name, **environment.recorded()}
    write_result(out, found, advice.figure(found, recipe.num_examples))
    print(json.dumps(found) if _JSON.value else f"{advice.as_text(found)}\n{out}.png")
    return 0


def recipe_of(config: ConfigDict, epochs: float | None) -> ConfigDict:
    """Returns the config of a short run of the recipe that measures its noise.

    Args:
      config: any; its plan does not matter.
      epochs: how long it is; None for a tenth of the recipe.

    Raises:
      ValueError: if this is not above 0.
    """
    config = copy.deepcopy(config)
    config.plan.name, config.plan.initial_multiple, config.plan.momentum = "decay", 1.0, None
    config.plan.momentum_rise_epochs = 0.0
    whole, num_examples = config.recipe.num_epochs, open_data(config, "train").num_examples
    length: float = whole / 10 if epochs is None else min(epochs, whole)
    if not length > 0:
        raise ValueError(f"--epochs={length} must be above 0")
    noise = config.noise
    noise.piece_size = piece_size_of(config)
    measured = MEASUREMENTS * noise.num_pieces * noise.piece_size
    noise.share = min(1.0, max(noise.share or 0.0, measured / (length * num_examples)))
    noise.horizon_epochs = min(noise.horizon_epochs, length / 4)
    config.log_every_epochs = length / MEASUREMENTS
    config.run.tensorboard = False
    return config


def update_times(experiment: Experiment) -> Iterator[tuple[int, float]]:
    """Yields batch sizes with the median seconds of an update.

    Raises:
      ValueError: for a limit below the smallest batch.
      MemoryError: if the smallest batch does not fit.
    """
    first, data = experiment.ghost_batch_size, experiment.train_data
    mesh = make_mesh(experiment.execution.num_devices)
    has_end = memory_limit(mesh.local_devices[0]) is not None
    first = math.lcm(first, mesh.size)
    most = _MAX_BATCH_SIZE.value or (data.num_examples if has_end else data.num_examples // 10)
    if _MAX_BATCH_SIZE.value is not None and most < first:
        raise ValueError(f"--max_batch_size={most} is below {first}, the smallest batch")
    for size in advice.sizes_up_to(first, most):
        plan = synthetic.make_plan([(size, synthetic.most_updates(size))], data.num_examples)
        try:
            updates = synthetic.updates(dataclasses.replace(experiment, plan=plan))
        except MemoryError:
            if size == first:
                raise
            return
        if has_end and updates.layout.num_microbatches > 1:
            return
        (seconds,) = synthetic.take_turns({"": updates.call}, _SECONDS.value).values()
        print(f"batch {size} timed", file=sys.stderr)
        yield size, statistics.median(seconds) / updates.num_updates


def measured_noise(experiment: Experiment) -> list[tuple[int, float]]:
    """Trains in a temporary folder; returns (examples seen, noise scale) of each row."""
    end = experiment.cadence.log * MEASUREMENTS
    with tempfile.TemporaryDirectory() as workdir:
        train_watched(experiment, workdir, lambda point, _: point.end_examples >= end)
        lines = (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(r["examples_seen"], r[NOISE_SCALE]) for r in rows if NOISE_SCALE in r]


if __name__ == "__main__":
    launch(main)
