"""Devices: how a global batch is laid out on them, and the only place that maps a step over them.

A global batch is cut into micro-batches of consecutive examples, and each micro-batch into one
piece per device. Ghost batches are consecutive examples too, so each lies in one micro-batch, on
one device or on neighbouring ones, and no number that training computes depends on the layout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from batchgrow.models.ghost_batch_norm import devices_per_ghost

AXIS_NAME = "batch"


@dataclass(frozen=True)
class Layout:
    """How one global batch lies on the devices.

    Attributes:
      global_batch_size: examples of one update.
      num_devices: of all processes.
      num_microbatches: passes per update; gradients are averaged over them.
    """

    global_batch_size: int
    num_devices: int
    num_microbatches: int

    @property
    def per_device_batch_size(self) -> int:
        """Examples of one update on one device."""
        return self.global_batch_size // self.num_devices

    @property
    def microbatch_size(self) -> int:
        """Examples of one pass on one device."""
        return self.per_device_batch_size // self.num_microbatches

    def split(self, positions: np.ndarray) -> np.ndarray:
        """Stream positions `(..., global)` to `(devices, ..., microbatches, microbatch)`."""
        lead = positions.shape[:-1]
        shape = (*lead, self.num_microbatches, self.num_devices, self.microbatch_size)
        return np.moveaxis(positions.reshape(shape), -2, 0)


def layouts(global_batch_size: int, num_devices: int, ghost_batch_size: int) -> Iterator[Layout]:
    """Every layout with whole ghost batches, from the largest micro-batch to the smallest."""
    per_device, rest = divmod(global_batch_size, num_devices)
    for num_microbatches in _divisors(per_device) if rest == 0 and per_device > 0 else ():
        try:
            devices_per_ghost(per_device // num_microbatches, ghost_batch_size, num_devices)
        except ValueError:
            continue
        if global_batch_size // num_microbatches % ghost_batch_size == 0:
            yield Layout(global_batch_size, num_devices, num_microbatches)


def choose_layout(
    global_batch_size: int,
    num_devices: int,
    ghost_batch_size: int,
    max_per_device_batch_size: float = math.inf,
) -> Layout:
    """The layout with the fewest micro-batches that `max_per_device_batch_size` allows.

    Raises:
      ValueError: if no layout holds whole ghost batches (names the nearest batch sizes that do), or
        if even the smallest micro-batch is larger than `max_per_device_batch_size`.
    """
    possible = list(layouts(global_batch_size, num_devices, ghost_batch_size))
    if not possible:
        near = nearest_batch_sizes(global_batch_size, num_devices, ghost_batch_size)
        raise ValueError(
            f"global batch size {global_batch_size} cannot be laid out on {num_devices} devices in "
            f"ghost batches of {ghost_batch_size}; the nearest that can: "
            f"{' and '.join(map(str, near))} (recipe.global_batch_size, plan.batch_multiple)"
        )
    for layout in possible:
        if layout.microbatch_size <= max_per_device_batch_size:
            return layout
    raise ValueError(
        f"max_per_device_batch_size {max_per_device_batch_size:.0f} is less than the smallest "
        f"micro-batch of whole ghost batches, {possible[-1].microbatch_size} (global batch size "
        f"{global_batch_size}, ghost_batch_size {ghost_batch_size}, {num_devices} devices); "
        "raise it, use more devices or a smaller ghost batch"
    )


def nearest_batch_sizes(
    global_batch_size: int, num_devices: int, ghost_batch_size: int
) -> tuple[int, ...]:
    """The nearest sizes below (if any) and above that can be laid out."""

    def possible(size: int) -> bool:
        return any(True for _ in layouts(size, num_devices, ghost_batch_size))

    # Any multiple of both works, so the search ends within one of them.
    span = math.lcm(num_devices, ghost_batch_size)
    below = next((s for s in range(global_batch_size - 1, 0, -1) if possible(s)), None)
    higher = range(global_batch_size + 1, global_batch_size + span + 1)
    above = next(size for size in higher if possible(size))
    return (above,) if below is None else (below, above)


def make_mesh(num_devices: int = 0) -> Mesh:
    """All devices of all processes, or the first `num_devices` of a single process.

    Raises:
      ValueError: if there are not that many.
    """
    devices = jax.devices()
    if num_devices > len(devices) or (num_devices and jax.process_count() > 1):
        raise ValueError(
            f"num_devices {num_devices}: {len(devices)} devices in {jax.process_count()} processes "
            "are here; set it to 0 to use all of them"
        )
    return Mesh(np.array(devices[: num_devices or None]), (AXIS_NAME,))


def local_device_slots(mesh: Mesh) -> list[int]:
    """The places along the mesh of the devices that this process drives."""
    me = jax.process_index()
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == me]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Host arrays to one copy on every device, unstacked. Every process passes the same values."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def shard(tree: Any, mesh: Mesh) -> Any:
    """Local arrays `(local_devices, ...)` to global arrays split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS_NAME))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def host_arguments(sharded: Any, replicated: Any, mesh: Mesh) -> tuple[Any, ...]:
    """Host arrays as a compiled call takes them: `(sharded, *replicated)`.

    A single process passes them as they are: the call transfers them itself, in less time than
    `device_put` takes, and need not wait for a transfer under way.

    Args:
      sharded: `(local_devices, ...)` arrays.
      replicated: arrays that are the same on every process.
    """
    if jax.process_count() == 1:
        return (sharded, *replicated)
    return (shard(sharded, mesh), *replicate(replicated, mesh))


def map_train(steps: Callable, mesh: Mesh) -> Any:
    """`steps(state, batches, learning_rates, num_updates, dataset)` on all devices, jitted.

    State, rates and data set are the same everywhere; batches are stacked `(devices, ...)`. The
    state's buffers are donated. An executable lives as long as the function that it was lowered
    from: take a new one for each batch size, and dropping both frees the device.
    """

    def on_device(state, batches, learning_rates, num_updates, dataset):
        return steps(state, _unstacked(batches), learning_rates, num_updates, dataset)

    return _map(on_device, mesh, (False, True, False, False, False), donate_argnums=(0,))


def map_eval(step: Callable, mesh: Mesh) -> Any:
    """`step(params, batch_stats, batch, dataset)` on all devices, batches stacked; jitted."""

    def on_device(params, batch_stats, batch, dataset):
        return step(params, batch_stats, _unstacked(batch), dataset)

    return _map(on_device, mesh, (False, False, True, False))


def _map(on_device: Callable, mesh: Mesh, split: Sequence[bool], **options: Any) -> Any:
    """What pmap is: one program per device with a named axis. But pmap keeps all it compiles."""
    each, same = PartitionSpec(AXIS_NAME), PartitionSpec()
    specs = tuple(each if is_split else same for is_split in split)
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=same, check_vma=False)
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(
        mapped, in_shardings=shardings, out_shardings=NamedSharding(mesh, same), **options
    )


def _unstacked(batch: Any) -> Any:
    return jax.tree.map(lambda x: x[0], batch)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]
