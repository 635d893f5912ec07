"""What a task costs: parameters and operations of an example."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchgrow.cost import num_parameters, training_flops

EXAMPLE = {"x": jax.ShapeDtypeStruct((4,), np.float32)}
LINEAR: Any = SimpleNamespace(
    init=lambda key, batch: {"params": {"w": jnp.zeros((batch["x"].shape[-1], 5))}},
    loss=lambda variables, batch, *, keys, train: batch["x"] @ variables["params"]["w"],
)


def test_a_linear_map_has_known_costs(monkeypatch):
    """The backends of accelerators return None for a lowered program; that of the CPU counts."""
    counting = jax.stages.Lowered.cost_analysis

    def only_on_cpu(lowered: Any) -> Any:
        return counting(lowered) if jax.config.jax_default_device is not None else None

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", only_on_cpu)
    assert training_flops(LINEAR, EXAMPLE) == 3 * 2 * 4 * 5
    assert num_parameters(LINEAR, EXAMPLE) == 4 * 5
