"""Predicts how long a plan takes on given hardware.

An update computes gradients and then sums them over all devices. Input is prepared meanwhile:

    update_seconds = max(B / n * seconds_per_example + allreduce, B / (hosts * input_rate))
    allreduce = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency

for batch size B on n devices and a ring all-reduce of float32 gradients that does not overlap with
computation. Not counted: evaluation, checkpoints, compilation, start-up, and the lower speed of a
device that has few examples per update.
"""

import math
from dataclasses import dataclass
from typing import Any

from batchgrow.plan.plan import FixedPlan

BYTES_PER_GRADIENT = 4  # float32


@dataclass(frozen=True)
class Hardware:
    """The hardware that a plan runs on.

    Attributes:
      seconds_per_example: time to train on one example on one device.
      num_devices: the devices of all hosts together. With `grow_devices`, those of the first
        segment.
      devices_per_host: each host prepares the input of so many devices.
      bandwidth: bytes per second that a device sends to the next one in the ring.
      latency: seconds of one step of the ring.
      input_rate: examples per second that one host can prepare. math.inf means no limit.
      grow_devices: whether the number of devices grows in proportion to the batch size.

    Raises:
      ValueError: if a field is outside its range.
    """

    seconds_per_example: float
    num_devices: int
    devices_per_host: int = 8
    bandwidth: float = 25e9
    latency: float = 5e-6
    input_rate: float = math.inf
    grow_devices: bool = False

    def __post_init__(self) -> None:
        for name in ("seconds_per_example", "bandwidth", "input_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("num_devices", "devices_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not self.latency >= 0:
            raise ValueError(f"latency={self.latency} must be 0 seconds or more")


def allreduce_seconds(
    num_bytes: float, num_devices: int, bandwidth: float, latency: float
) -> float:
    """Returns the seconds of a ring all-reduce: each device sends 2 (n - 1) pieces of bytes / n.

    >>> allreduce_seconds(1e9, num_devices=4, bandwidth=1e9, latency=0.0)
    1.5
    """
    steps = 2 * (num_devices - 1)
    return steps * (num_bytes / num_devices / bandwidth + latency)


def predict(plan: FixedPlan, num_parameters: int, hardware: Hardware) -> dict[str, Any]:
    """Returns the seconds of each segment and of the run, as plain numbers.

    `needed_per_host` is the number of examples per second that each host must prepare so that no
    device waits for input.

    Raises:
      ValueError: if devices that grow with the batch size would not be a whole number.
    """
    first = plan.segments[0].batch_size
    segments = []
    for segment in plan.segments:
        devices = hardware.num_devices
        if hardware.grow_devices:
            devices, rest = divmod(devices * segment.batch_size, first)
            if rest:
                raise ValueError(
                    f"num_devices={hardware.num_devices} for a batch size of {first} is not a "
                    f"whole number for {segment.batch_size}: change num_devices, or do not set "
                    "grow_devices"
                )
        hosts = math.ceil(devices / hardware.devices_per_host)
        compute = segment.batch_size / devices * hardware.seconds_per_example
        allreduce = allreduce_seconds(
            num_parameters * BYTES_PER_GRADIENT, devices, hardware.bandwidth, hardware.latency
        )
        needed = segment.batch_size / (compute + allreduce) / hosts
        wait = max(0.0, segment.batch_size / (hosts * hardware.input_rate) - compute - allreduce)
        update = compute + allreduce + wait
        segments.append(
            {
                "batch_size": segment.batch_size,
                "num_devices": devices,
                "num_updates": segment.num_updates,
                "update_seconds": update,
                "allreduce_share": allreduce / update,
                "input_share": wait / update,
                "examples_per_second": segment.batch_size / update,
                "needed_per_host": needed,
                "seconds": segment.num_updates * update,
            }
        )
    return {
        "segments": segments,
        "seconds": math.fsum(segment["seconds"] for segment in segments),
        "device_seconds": math.fsum(
            segment["seconds"] * segment["num_devices"] for segment in segments
        ),
        "needed_per_host": max(segment["needed_per_host"] for segment in segments),
    }


def table(prediction: dict[str, Any]) -> str:
    """Returns the prediction as text, one line per segment."""
    cells = [
        ["segment", "batch", "devices", "updates", "update ms", "all-reduce", "input wait"]
        + ["examples/s", "needed per host", "minutes"]
    ]
    for index, segment in enumerate(prediction["segments"]):
        cells.append(
            [
                str(index),
                str(segment["batch_size"]),
                str(segment["num_devices"]),
                f"{segment['num_updates']:,}",
                f"{1e3 * segment['update_seconds']:.4g}",
                f"{segment['allreduce_share']:.1%}",
                f"{segment['input_share']:.1%}",
                f"{segment['examples_per_second']:,.0f}",
                f"{segment['needed_per_host']:,.0f}",
                f"{segment['seconds'] / 60:.1f}",
            ]
        )
    updates = sum(segment["num_updates"] for segment in prediction["segments"])
    total = ["total", "", "", f"{updates:,}", "", "", "", "", ""]
    cells.append([*total, f"{prediction['seconds'] / 60:.1f}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in cells)
