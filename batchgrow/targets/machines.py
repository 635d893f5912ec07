"""Machines to compile for: generations of devices, and slices of them by name."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from batchgrow.errors import first_line
from batchgrow.layout import AXIS_NAME

GIB = 2**30


@dataclass(frozen=True)
class Generation:
    """One kind of device.

    Attributes:
      platform: "tpu" or "cuda".
      device_kind: JAX's name of it.
      memory: bytes that a program may use on one device.
      devices_per_host: JAX devices of a full host.
      devices_per_chip: JAX devices of a chip.
      clock: cycles per second in which the compiler counts; None where it counts none, or where the
        clock is not published.
      bandwidth: bytes per second that a device sends to its neighbours in all; None if unknown.
      network: how the devices are connected, as in `plan.time_to_train`.
      source: where these numbers come from.
    """

    platform: str
    device_kind: str
    memory: int
    devices_per_host: int
    clock: float | None
    bandwidth: float | None
    network: str
    source: str
    devices_per_chip: int = 1


# Memory: what the compiler of libtpu 0.0.42 calls available when it refuses a program. Devices per
# host: those of its topologies. Clocks: of v2 and v3 as published, of the others the peak of the
# data sheet over the operations of all matrix units in a cycle. The compiler's cycles for large
# matrix products come near to both. Bandwidth: half of the bidirectional one of the data sheet,
# divided among the devices of a chip. v4 is missing: libtpu compiles for one of its two cores.
_CACM = "Jouppi et al. 2020, Communications of the ACM 63(7)"


def _tpu(
    kind: str,
    gib: float,
    devices_per_host: int,
    gigahertz: float | None,
    bandwidth: float,
    network: str,
    source: str,
    devices_per_chip: int = 1,
) -> Generation:
    return Generation(
        "tpu",
        kind,
        int(gib * GIB),
        devices_per_host,
        gigahertz and 1e9 * gigahertz,
        bandwidth,
        network,
        f"memory: libtpu 0.0.42; clock and network: {source}",
        devices_per_chip,
    )


def _sheet(name: str) -> str:
    return f"cloud.google.com/tpu/docs/{name}"


GENERATIONS = {
    "v2": _tpu("TPU v2", 7.48, 8, 0.7, 124e9, "torus2", _CACM, 2),
    "v3": _tpu("TPU v3", 15.48, 8, 0.94, 164e9, "torus2", _CACM, 2),
    "v5e": _tpu("TPU v5 lite", 15.75, 4, 1.5, 200e9, "torus2", _sheet("v5e")),
    "v5p": _tpu("TPU v5", 95.74, 4, 1.75, 600e9, "torus3", _sheet("v5p")),
    "v6e": _tpu("TPU v6 lite", 31.25, 4, 1.75, 400e9, "torus2", _sheet("v6e")),
    "tpu7x": _tpu("TPU7x", 94.75, 8, None, 300e9, "torus3", _sheet("tpu7x"), 2),
    "h100": Generation(
        "cuda",
        "NVIDIA H100",
        int(0.75 * 84_942_979_072),
        8,
        None,
        None,
        "ring",
        "H100 SXM5 80 GB, of which JAX takes 0.75 by default (XLA_PYTHON_CLIENT_MEM_FRACTION)",
    ),
}

# What XLA's compiler for GPUs asks of an H100 SXM5, from NVIDIA's CUDA programming guide (compute
# capability 9.0) and data sheet. It chooses no kernel by timing, and estimates no time.
_H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072
  runtime_version: "12.8.0" driver_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Target:
    """A number of devices of one generation.

    Attributes:
      name: such as "v5e:16x16" or "h100:8".
      generation: of the devices.
      topology: the chips along each axis, or the number of GPUs.
    """

    name: str
    generation: Generation
    topology: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """JAX devices of all hosts."""
        return math.prod(self.topology) * self.generation.devices_per_chip


def parse(name: str) -> Target:
    """Returns the target that a name describes.

    >>> parse("v5e:16x16").topology
    (16, 16)

    Raises:
      ValueError: if the generation is not in the table, or the topology is none.
    """
    generation, _, topology = name.partition(":")
    if generation not in GENERATIONS:
        known = ", ".join(GENERATIONS)
        raise ValueError(f"--target={name}: unknown generation {generation!r}; choose {known}")
    found = GENERATIONS[generation]
    is_gpu = found.platform == "cuda"
    pattern = r"[1-9]\d*" if is_gpu else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if not re.fullmatch(pattern, topology):
        form = "the number of GPUs, as in h100:8" if is_gpu else "chips, as in v5e:16x16"
        raise ValueError(f"--target={name}: after the colon stand {form}")
    return Target(name, found, tuple(map(int, topology.split("x"))))


def mesh_of(target: Target) -> Mesh:
    """Returns a mesh of devices that are not here, for which programs can only be compiled.

    Raises:
      ValueError: if the compiler for them is not installed, or knows no such slice.
    """
    if target.generation.platform == "tpu":
        # Else libtpu asks a metadata server for the machine that it is on, says what it misses, and
        # refuses a second process.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        arguments: dict[str, Any] = {"topology_name": target.name}
    else:
        hosts, rest = divmod(target.topology[0], target.generation.devices_per_host)
        shape = f"1x1x{target.topology[0]}" if rest else f"1x{hosts}x{target.topology[0] // hosts}"
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of libraries to run with
        arguments = {"topology_name": "", "topology": shape, "target_config": _H100}
    try:
        found = topologies.get_topology_desc(platform=target.generation.platform, **arguments)
    except RuntimeError as error:
        raise ValueError(f"--target={target.name}: {first_line(error)}") from error
    return Mesh(np.array(found.devices).reshape(-1), (AXIS_NAME,))
