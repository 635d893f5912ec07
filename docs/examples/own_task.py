"""A task and a data set of your own, trained by the engine from Python: no config, no flags."""

import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np

from batchgrow import Recipe, curves, grow
from batchgrow.data.datasets import ArrayDataset
from batchgrow.experiment import Cadence, Execution, Experiment
from batchgrow.optimizer import make_optimizer
from batchgrow.tasks import Metric, Outputs
from batchgrow.train import train

WEIGHTS = np.array([2.0, -1.0, 0.5], np.float32)


class Counts:
    """Poisson regression: the logarithm of the expected count is linear in x."""

    metrics = (Metric("loss", "lower"), Metric("error", "lower"))  # the first picks the best

    def init(self, key, examples):
        return {"params": {"w": jnp.zeros(examples["x"].shape[-1])}}

    def loss(self, variables, examples, keys, *, train):
        log_rate = examples["x"] @ variables["params"]["w"]
        losses = jnp.exp(log_rate) - examples["count"] * log_rate
        return Outputs(losses, {}, {"error": jnp.abs(jnp.exp(log_rate) - examples["count"])})

    def summarize(self, sums):
        return {name: sums[name] / sums["count"] for name in ("loss", "error")}


def make_data(seed: int, num_examples: int) -> ArrayDataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_examples, 3)).astype(np.float32) / 2
    return ArrayDataset({"x": x, "count": rng.poisson(np.exp(x @ WEIGHTS)).astype(np.float32)})


if __name__ == "__main__":
    curve = curves.step(0.01, (2, 4, 6), 0.5)
    plan = grow(Recipe(10, 0.9, curve, num_examples=2000, num_epochs=8), max_batch_size=80)
    experiment = Experiment(
        name="counts",
        task=Counts(),
        train_data=make_data(0, 2000),
        test_data=make_data(1, 500),
        plan=plan,
        optimizer=make_optimizer("momentum", momentum=0.9, weight_decay=0.0),
        cadence=Cadence(log=2000, evaluate=2000, checkpoint=4000),
        execution=Execution(progress=False),
    )
    with tempfile.TemporaryDirectory() as folder:
        print(train(experiment, folder))  # a second call would go on from the last checkpoint
        final = json.loads(pathlib.Path(folder, "summary.json").read_text())["final"]
    print(f"{plan.num_updates} updates, test loss {final['test_loss']:.3f}")
