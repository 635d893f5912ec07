"""What a task costs: its parameters, and the arithmetic of an example."""

from typing import Any

import jax
from jax.sharding import Mesh

from batchgrow.devices import peak_flops
from batchgrow.experiment import Experiment
from batchgrow.tasks import Task


def num_parameters(task: Task, example: Any) -> int:
    """The number of parameters of a task.

    Args:
      task: the task.
      example: one example, arrays or `jax.ShapeDtypeStruct`s.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(task, example)[0]["params"]))


def training_flops(task: Task, example: Any) -> float:
    """Floating-point operations of training on one example: those of three forward passes.

    Counts what XLA counts in the forward pass, traced for the CPU: the backends of TPUs and GPUs do
    not count. Nothing is compiled or run.

    Args:
      task: the task.
      example: one example, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      RuntimeError: if JAX_PLATFORMS leaves out the CPU.
    """

    def forward(variables: Any, batch: Any) -> Any:
        return task.loss(variables, batch, keys=None, train=False)

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        analysis: Any = jax.jit(forward).lower(*_shapes(task, example)).cost_analysis()
    return 3.0 * analysis["flops"]


def share_of_peak(experiment: Experiment, mesh: Mesh) -> float | None:
    """The share of the devices' peak that one example per second uses; None if unknown."""
    dtype = experiment.settings.get("model", {}).get("dtype", "float32")
    peak = peak_flops(mesh.devices.flat[0].device_kind, dtype)
    if peak is None:
        return None
    try:
        flops = training_flops(experiment.task, experiment.train_data.example)
    except (RuntimeError, ValueError):
        # JAX_PLATFORMS leaves out the CPU, which counts, or a kernel of the model is not for it.
        return None
    return flops / (peak * mesh.size)


def _shapes(task: Task, example: Any) -> tuple[Any, Any]:
    """The shapes of the variables, and of a batch of one example."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), example)
    return jax.eval_shape(task.init, jax.random.key(0), one), one
