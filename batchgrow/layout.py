"""How a batch is laid out on devices. Only this file maps functions over devices.

The arrays that the host sends for a dispatch have the axes

    (updates, micro-batches, examples)

in this order. The examples of one micro-batch are consecutive in the stream. The last axis is split
over the devices. Ghost batches are consecutive examples too. Each one therefore belongs to one
micro-batch and to one device or to neighbouring devices, and nothing that training computes depends
on the layout.
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
    """How the batch of one update is laid out.

    Attributes:
      batch_size: examples of one update, on all devices together.
      num_devices: devices of all processes.
      num_microbatches: passes of one update. Their gradients are averaged.
    """

    batch_size: int
    num_devices: int
    num_microbatches: int

    @property
    def microbatch_size(self) -> int:
        """Examples of one pass on one device."""
        return self.batch_size // self.num_microbatches // self.num_devices

    def split(self, positions: np.ndarray) -> np.ndarray:
        """Reshapes stream positions `(..., batch)` to `(..., micro-batches, examples)`."""
        return positions.reshape(*positions.shape[:-1], self.num_microbatches, -1)


def every_layout(batch_size: int, num_devices: int, ghost_batch_size: int) -> Iterator[Layout]:
    """Every layout with whole ghost batches, from the fewest micro-batches to the most."""
    per_device, rest = divmod(batch_size, num_devices)
    for num_microbatches in _divisors(per_device) if rest == 0 and per_device > 0 else ():
        try:
            devices_per_ghost(per_device // num_microbatches, ghost_batch_size, num_devices)
        except ValueError:
            continue
        if batch_size // num_microbatches % ghost_batch_size == 0:
            yield Layout(batch_size, num_devices, num_microbatches)


def possible_layouts(
    batch_size: int,
    num_devices: int,
    ghost_batch_size: int,
    max_microbatch_size: float = math.inf,
) -> tuple[Layout, ...]:
    """The layouts that `max_microbatch_size` allows, from the fewest micro-batches to the most.

    Args:
      batch_size: examples of one update.
      num_devices: devices of all processes.
      ghost_batch_size: examples that share batch statistics; 1 where there are none.
      max_microbatch_size: the most examples of one pass on one device.

    Raises:
      ValueError: if no layout has whole ghost batches (the message names the nearest batch sizes
        that do), or if even the smallest micro-batch is larger than `max_microbatch_size`.
    """
    layouts = list(every_layout(batch_size, num_devices, ghost_batch_size))
    if not layouts:
        near = nearest_batch_sizes(batch_size, num_devices, ghost_batch_size)
        raise ValueError(
            f"batch size {batch_size} cannot be laid out on {num_devices} devices in ghost batches "
            f"of {ghost_batch_size}; the nearest that can: {' and '.join(map(str, near))} "
            "(recipe.batch_size, plan.batch_multiple)"
        )
    allowed = tuple(x for x in layouts if x.microbatch_size <= max_microbatch_size)
    if not allowed:
        raise ValueError(
            f"run.max_microbatch_size {max_microbatch_size:.0f} is less than the smallest "
            f"micro-batch of whole ghost batches, {layouts[-1].microbatch_size} (batch size "
            f"{batch_size}, ghost_batch_size {ghost_batch_size}, {num_devices} devices); raise it, "
            "use more devices or a smaller ghost batch"
        )
    return allowed


def nearest_batch_sizes(
    batch_size: int, num_devices: int, ghost_batch_size: int
) -> tuple[int, ...]:
    """Returns the nearest sizes below (if any) and above that can be laid out."""
    # A size can be laid out if and only if it is a multiple of the devices and of the ghost batch.
    span = math.lcm(num_devices, ghost_batch_size)
    below, above = (batch_size - 1) // span * span, (batch_size // span + 1) * span
    return (below, above) if below else (above,)


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh of all devices of all processes, or of `num_devices` of one process.

    Raises:
      ValueError: if there are fewer devices, or if there are several processes and `num_devices`
        is set.
    """
    devices = jax.devices()
    if num_devices is not None:
        if jax.process_count() > 1:
            raise ValueError(
                f"run.num_devices {num_devices}: {jax.process_count()} processes use all of their "
                "devices; leave it at None"
            )
        if num_devices > len(devices):
            raise ValueError(
                f"run.num_devices {num_devices}: there are only {len(devices)} devices; set it to "
                f"{len(devices)} or less, or to None to use all"
            )
    return Mesh(np.array(devices[:num_devices]), (AXIS_NAME,))


def local_examples(array: np.ndarray, mesh: Mesh, axis: int = -1) -> np.ndarray:
    """Returns the part of `array` on this process's devices if `axis` is split over the mesh."""
    if jax.process_count() == 1:
        return array
    me = jax.process_index()
    pieces = np.split(array, mesh.size, axis)
    mine = [d.process_index == me for d in mesh.devices.flat]
    return np.concatenate([p for p, is_mine in zip(pieces, mine, strict=True) if is_mine], axis)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies host arrays to every device. Every process passes the same values."""
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def shard(tree: Any, mesh: Mesh) -> Any:
    """Turns `(local examples, ...)` into global arrays with the first axis split over the mesh."""
    return _place(tree, NamedSharding(mesh, PartitionSpec(AXIS_NAME)))


def _place(tree: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def host_arguments(batches: Any, scalars: Any, mesh: Mesh) -> tuple[Any, ...]:
    """Prepares host arrays for a compiled update: `(batches, *scalars)`.

    A single process passes them as they are: the call then transfers them itself, which takes less
    time than `device_put` and does not wait for a transfer under way.

    Args:
      batches: arrays `(updates, micro-batches, local examples, ...)`.
      scalars: arrays that are the same on every process.
    """
    if jax.process_count() == 1:
        return (batches, *scalars)
    return (_place(batches, NamedSharding(mesh, BATCHES)), *replicate(scalars, mesh))


BATCHES = PartitionSpec(None, None, AXIS_NAME)


def map_updates(updates: Callable, mesh: Mesh) -> Any:
    """Jits `updates(state, batches, learning_rates, num_updates, arrays, momenta)` on all devices.

    The last batch axis of `batches` is split; all other arguments and the results are the same on
    every device. The buffers of the state are donated. An executable stays alive as long as the
    function that it was lowered from, so take a new function for each batch size and drop both.
    """
    return _map(updates, mesh, (None, BATCHES, None, None, None, None), donate_argnums=(0,))


def map_evaluation(evaluate: Callable, mesh: Mesh) -> Any:
    """Jits `evaluate(state, batch)` on all devices; the first axis of `batch` is split."""
    return _map(evaluate, mesh, (None, PartitionSpec(AXIS_NAME)))


def map_pieces(measure: Callable, mesh: Mesh) -> Any:
    """Jits `measure(state, pieces, weights, arrays)` on all devices.

    The first axis of `pieces` and of `weights` is split.
    """
    first = PartitionSpec(AXIS_NAME)
    return _map(measure, mesh, (None, first, first, None))


def _map(function: Callable, mesh: Mesh, split: Sequence[PartitionSpec | None], **options: Any):
    """Maps a function as `pmap` does: one program for each device with a named axis.

    `pmap` is not used, because it keeps every executable until the process ends.
    """
    same = PartitionSpec()
    specs = tuple(spec or same for spec in split)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=same, check_vma=False)
    return jax.jit(
        mapped,
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
        out_shardings=NamedSharding(mesh, same),
        **options,
    )


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]
