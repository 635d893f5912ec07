"""Predicts how long a plan takes on given hardware.

An update computes gradients and then sums them over all devices. Input is prepared meanwhile:

    update_seconds = max(a + b * B / n + allreduce, B * h / n / input_rate)
    allreduce = 2 (n - 1) / n * bytes / bandwidth + hops(n) * latency

for batch size B on n devices, h of them on the largest host, and an all-reduce of float32 gradients
that does not overlap with computation. a is the time that an update takes for any number of
examples: launching programs, applying the optimizer, reading the parameters. It is why a larger
batch is faster on the same devices; `fit` finds a and b from measured batch sizes. Not counted:
evaluation, checkpoints, compilation and start-up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgrow.plan.plan import FixedPlan
from batchgrow.text_table import text_table

BYTES_PER_GRADIENT = 4  # float32


@dataclass(frozen=True)
class Hardware:
    """The hardware that a plan runs on.

    Attributes:
      seconds_per_example: b, the time of one more example on one device.
      num_devices: the devices of all hosts together. With `grow_devices`, those of the first
        segment.
      devices_per_host: the number of devices whose input one host prepares.
      bandwidth: bytes per second that a device sends to the next one.
      latency: seconds from a device to the next one.
      input_rate: examples per second that one host can prepare. math.inf means no limit.
      grow_devices: whether the number of devices grows in proportion to the batch size.
      seconds_per_update: a, the time of an update that does not depend on its examples.
      network: "ring"; "torus" of two or three dimensions: "torus2", "torus3"; or "tree".

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
    seconds_per_update: float = 0.0
    network: str = "ring"

    def __post_init__(self) -> None:
        for name in ("seconds_per_example", "bandwidth", "input_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("num_devices", "devices_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("latency", "seconds_per_update"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 seconds or more")
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}; choose {', '.join(NETWORKS)}")


def fit(*measured: tuple[float, float]) -> tuple[float, float]:
    """Returns (a, b) of update seconds = a + b * examples, from measurements on one device.

    Of more than two, the relative errors are as small as possible (least squares).

    >>> fit((32, 0.012), (256, 0.068))
    (0.004, 0.00025)

    Args:
      measured: (examples per device, seconds of an update), at least two.

    Raises:
      ValueError: if there are fewer, or the largest batch is not slower than the smallest. A
        negative a, from noise, counts as 0.
    """
    if len(measured) < 2:
        raise ValueError(f"{len(measured)} measured batch size: two or more are needed")
    points = sorted(measured)
    (small, fast), (large, slow) = points[0], points[-1]
    if not (0 < small < large and 0 < fast < slow):
        raise ValueError(
            f"{small:g} examples in {fast:g} s and {large:g} in {slow:g} s: the larger batch must "
            "take longer; measure two sizes that are further apart"
        )
    sizes, seconds = np.array(points, float).T
    rows = np.stack([1 / seconds, sizes / seconds], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)
    if intercept < 0 or slope <= 0:
        return 0.0, slow / large
    return round(float(intercept), 12), round(float(slope), 15)


def allreduce_seconds(
    num_bytes: float, num_devices: int, bandwidth: float, latency: float, network: str = "ring"
) -> float:
    """Returns the seconds of an all-reduce: a device sends 2 (n - 1) / n of the bytes in any case.

    A ring has 2 (n - 1) hops, a torus of d dimensions 2 d (n^(1/d) - 1), because it reduces along
    one dimension after another, and a tree 2 log2(n) (Thakur, Rabenseifner & Gropp 2005).

    >>> allreduce_seconds(1e9, num_devices=4, bandwidth=1e9, latency=0.0)
    1.5
    """
    hops = 2 * NETWORKS[network](num_devices)
    share = 2 * (num_devices - 1) / num_devices
    return share * num_bytes / bandwidth + hops * latency


NETWORKS: dict[str, Callable[[int], float]] = {
    "ring": lambda n: n - 1,
    "torus2": lambda n: 2 * (n ** (1 / 2) - 1),
    "torus3": lambda n: 3 * (n ** (1 / 3) - 1),
    "tree": lambda n: math.ceil(math.log2(n)),
}


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
        # The host with the most devices needs the most input.
        share = min(devices, hardware.devices_per_host) / devices
        examples = segment.batch_size / devices
        compute = hardware.seconds_per_update + examples * hardware.seconds_per_example
        allreduce = allreduce_seconds(
            num_parameters * BYTES_PER_GRADIENT,
            devices,
            hardware.bandwidth,
            hardware.latency,
            hardware.network,
        )
        needed = segment.batch_size * share / (compute + allreduce)
        input_seconds = segment.batch_size * share / hardware.input_rate
        wait = max(0.0, input_seconds - compute - allreduce)
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
    return text_table(cells)
