"""What a config would do: its phases, before anything is trained and with no device touched.

    python -m experiments.plan --config=configs/digits.py:increasing_batch --num_devices=4

and how long it would take, from a measured rate or from a device's peak and an assumed share of it:

    python -m experiments.plan --config=configs/imagenet_resnet50.py:increasing_batch \\
        --num_devices=256 --grow_devices --seconds_per_image=0.006
"""

import json
from typing import Any

import jax
from absl import flags

from batchgrow import flops, time_to_train
from batchgrow.config import Config, check, check_layouts, make_network, make_schedule
from experiments import cli

_CONFIG = cli.config_flag()
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 1, "Devices of all hosts together.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
_SECONDS_PER_IMAGE = flags.DEFINE_float(
    "seconds_per_image", None, "Time to train: of one device, as measured (1 / images_per_second)."
)
_DEVICE = flags.DEFINE_string(
    "device", None, f"Time to train, by its peak; one of: {', '.join(flops.PEAK_FLOPS)}."
)
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.1, "With --device: assumed share of its peak; bench_imagenet measures it."
)
_GROW_DEVICES = flags.DEFINE_bool(
    "grow_devices", False, "Time to train on more devices as the batch grows; --num_devices first."
)
_DEVICES_PER_HOST = flags.DEFINE_integer("devices_per_host", 8, "Whose input one host prepares.")
_INPUT_RATE = flags.DEFINE_float(
    "input_rate", float("inf"), "Images/s that one host prepares (bench_input); not given: enough."
)
_BANDWIDTH = flags.DEFINE_float("bandwidth", 25.0, "GB/s from a device to the next; an assumption.")
_LATENCY = flags.DEFINE_float("latency", 5.0, "Microseconds from a device to the next, likewise.")


def main() -> int:
    """Prints the plan."""
    config, num_devices = _CONFIG.value, _NUM_DEVICES.value
    check(config)
    schedule = make_schedule(config)
    check_layouts(config, schedule, num_devices)
    plan = schedule.to_dict(num_devices=num_devices)
    if _SECONDS_PER_IMAGE.value is not None or _DEVICE.value is not None:
        plan["time"] = _time(config)
    if _JSON.value:
        print(json.dumps(plan, indent=2))
        return 0
    print(schedule.table(num_devices=num_devices))
    longest = max(schedule.at(p.start_examples).accumulation_epochs for p in schedule.phases)
    print(
        f"\nnoise scale: learning_rate N / (B (1 - momentum)); the form with (N/B - 1) is lower by "
        f"B/N.\nMomentum forgets old gradients over B / (N (1 - momentum)) <= {longest:.2g} epochs."
    )
    if "time" in plan:
        print(f"\n{time_to_train.table(plan['time'])}\n")
        print("\n".join(f"- {line}" for line in plan["time"]["assumptions"]))
    return 0


def _time(config: Config) -> dict[str, Any]:
    """The prediction, with the lines that say what it takes for granted."""
    model = make_network(config)
    seconds_per_image, basis = _compute(config, model)
    hardware = time_to_train.Hardware(
        seconds_per_image=seconds_per_image,
        num_devices=_NUM_DEVICES.value,
        devices_per_host=_DEVICES_PER_HOST.value,
        bandwidth=1e9 * _BANDWIDTH.value,
        latency=1e-6 * _LATENCY.value,
        input_rate=_INPUT_RATE.value,
        grow_devices=_GROW_DEVICES.value,
    )
    num_parameters = _num_parameters(model, tuple(config.data.image_shape))
    prediction = time_to_train.predict(make_schedule(config), num_parameters, hardware)
    needed = prediction["needed_per_host"]
    prepares = "enough" if _INPUT_RATE.value == float("inf") else f"{_INPUT_RATE.value:,.0f}"
    prediction["assumptions"] = [
        basis,
        f"ring all-reduce of {num_parameters:,} float32 gradients, not overlapped: "
        f"2 (n - 1) steps, each of 1/n of the bytes at {_BANDWIDTH.value:g} GB/s and of "
        f"{_LATENCY.value:g} microseconds (not measured)",
        f"input, read ahead, for {_DEVICES_PER_HOST.value} devices a host: up to {needed:,.0f} "
        f"images/s needed, {prepares} prepared",
        "not counted: evaluation, checkpoints, compilation, starting up; that few images a device "
        "may be slower each",
    ]
    return prediction


def _compute(config: Config, model: Any) -> tuple[float, str]:
    """Seconds per image on one device, and where that comes from."""
    device, given = _DEVICE.value or "", _SECONDS_PER_IMAGE.value
    if given is not None:
        if device:
            raise ValueError("--seconds_per_image and --device say the same; give one of them")
        return given, f"{given:g} s per image and device, as given, for every batch size"
    peak = flops.peak_flops(device, config.model.dtype)
    if peak is None:
        raise ValueError(
            f"--device={device}: no peak for {config.model.dtype} is known; give "
            f"--seconds_per_image, or one of: {', '.join(flops.PEAK_FLOPS)}"
        )
    if not 0 < _UTILISATION.value <= 1:
        raise ValueError(f"--utilisation={_UTILISATION.value} must be above 0 and at most 1")
    jax.config.update("jax_platforms", "cpu")  # it only counts, wherever this runs
    operations = flops.training_flops(model, tuple(config.data.image_shape))
    seconds = operations / (peak * _UTILISATION.value)
    return seconds, (
        f"{seconds:.3g} s per image and device: {operations / 1e9:.1f} GFLOP forward and back at "
        f"{_UTILISATION.value:.0%} (assumed) of the {peak / 1e12:g} TFLOP/s that the maker states "
        f"for {device} in {config.model.dtype}"
    )


def _num_parameters(model: Any, image_shape: tuple[int, int, int]) -> int:
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


if __name__ == "__main__":
    cli.run(main)
