"""How long a plan takes on given hardware, before any of it is rented. Standard library only.

An update computes, then sums its gradients over all devices, and input is read ahead of it:

    update = max(B / n * seconds_per_image + allreduce, B / (hosts * input_rate))
    allreduce = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency

with batch B on n devices and a ring all-reduce of float32 gradients that overlaps with nothing, so
communication is counted in full. Not counted: evaluation, checkpoints, compilation, starting up,
and that a device may be slower for each image where it holds few of them.
"""

import math
from dataclasses import dataclass
from typing import Any

from batchgrow.plan.plan import Schedule

BYTES_PER_GRADIENT = 4  # float32


@dataclass(frozen=True)
class Hardware:
    """What one plan runs on.

    Attributes:
      seconds_per_image: of training, on one device.
      num_devices: of all hosts; in the first phase, if devices grow with the batch.
      devices_per_host: each host prepares the input of so many.
      bandwidth: bytes a second that a device sends to the next in the ring.
      latency: seconds of one step of the ring.
      input_rate: images a second that one host can prepare; inf to leave it out.
      grow_devices: devices in proportion to the batch, each with as many images as at first.
    """

    seconds_per_image: float
    num_devices: int
    devices_per_host: int = 8
    bandwidth: float = 25e9
    latency: float = 5e-6
    input_rate: float = math.inf
    grow_devices: bool = False

    def __post_init__(self) -> None:
        for name in ("seconds_per_image", "bandwidth", "input_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} must be above 0")
        for name in ("num_devices", "devices_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be 1 or more")
        if not self.latency >= 0:
            raise ValueError(f"latency {self.latency} must be 0 seconds or more")


def allreduce_seconds(
    num_bytes: float, num_devices: int, bandwidth: float, latency: float
) -> float:
    """A ring: each device passes on 2 (n - 1) pieces of 1/n of the bytes.

    >>> allreduce_seconds(1e9, num_devices=4, bandwidth=1e9, latency=0.0)
    1.5
    """
    steps = 2 * (num_devices - 1)
    return steps * (num_bytes / num_devices / bandwidth + latency)


def predict(schedule: Schedule, num_parameters: int, hardware: Hardware) -> dict[str, Any]:
    """Seconds of each phase and of the run, in plain numbers.

    `needed_per_host` is the images a second that each host must prepare for devices never to wait.

    Raises:
      ValueError: where devices that grow with the batch would not be a whole number.
    """
    first = schedule.phases[0].batch_size
    phases = []
    for phase in schedule.phases:
        devices = hardware.num_devices
        if hardware.grow_devices:
            devices, rest = divmod(devices * phase.batch_size, first)
            if rest:
                raise ValueError(
                    f"num_devices {hardware.num_devices} for a batch of {first} is no whole number "
                    f"for {phase.batch_size}; leave grow_devices out, or change one of them"
                )
        hosts = math.ceil(devices / hardware.devices_per_host)
        compute = phase.batch_size / devices * hardware.seconds_per_image
        allreduce = allreduce_seconds(
            num_parameters * BYTES_PER_GRADIENT, devices, hardware.bandwidth, hardware.latency
        )
        needed = phase.batch_size / (compute + allreduce) / hosts
        wait = max(0.0, phase.batch_size / (hosts * hardware.input_rate) - compute - allreduce)
        update = compute + allreduce + wait
        phases.append(
            {
                "global_batch_size": phase.batch_size,
                "num_devices": devices,
                "num_updates": phase.num_updates,
                "update_seconds": update,
                "allreduce_share": allreduce / update,
                "input_share": wait / update,
                "images_per_second": phase.batch_size / update,
                "needed_per_host": needed,
                "seconds": phase.num_updates * update,
            }
        )
    return {
        "phases": phases,
        "seconds": math.fsum(phase["seconds"] for phase in phases),
        "device_seconds": math.fsum(phase["seconds"] * phase["num_devices"] for phase in phases),
        "needed_per_host": max(phase["needed_per_host"] for phase in phases),
    }


def table(prediction: dict[str, Any]) -> str:
    """The prediction as text, one line a phase."""
    cells = [
        ["phase", "batch", "devices", "updates", "update ms", "all-reduce", "input wait"]
        + ["images/s", "needed per host", "minutes"]
    ]
    for index, phase in enumerate(prediction["phases"]):
        cells.append(
            [
                str(index),
                str(phase["global_batch_size"]),
                str(phase["num_devices"]),
                f"{phase['num_updates']:,}",
                f"{1e3 * phase['update_seconds']:.4g}",
                f"{phase['allreduce_share']:.1%}",
                f"{phase['input_share']:.1%}",
                f"{phase['images_per_second']:,.0f}",
                f"{phase['needed_per_host']:,.0f}",
                f"{phase['seconds'] / 60:.1f}",
            ]
        )
    updates = sum(phase["num_updates"] for phase in prediction["phases"])
    total = ["total", "", "", f"{updates:,}", "", "", "", "", ""]
    cells.append([*total, f"{prediction['seconds'] / 60:.1f}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in cells)
