"""Print the plan of a config: its segments, without training and without a device.

    python -m experiments.plan --config=configs/digits.py:increasing_batch --num_devices=4

The data need not be there if the config says how many examples they have. Where a text, a table or
an .npz file is there, that number is checked, as in training.

It also predicts the time to train, from a measured time of an example, or from the peak of a device
and the share of it that is assumed to be reached:

    python -m experiments.plan --config=configs/imagenet_resnet50.py:increasing_batch \\
        --num_devices=256 --grow_devices --seconds_per_example=0.006

With --target it compiles every batch size for machines that are not here: layouts, memory,
collectives and the compiler's own estimate of the time (a pod takes some minutes):

    python -m experiments.plan --config=configs/imagenet_resnet50.py:increasing_batch \\
        --target=v5e:16x16
"""

import json
from typing import Any

import jax
from absl import flags

from batchgrow import devices
from batchgrow.config import ConfigDict, check_layouts, make_plan, warn_of
from batchgrow.config.data import model_facts, num_examples_of, open_data
from batchgrow.config.task import make_task
from batchgrow.cost import num_parameters, training_flops
from batchgrow.plan import FixedPlan, time_to_train
from batchgrow.targets import forecast
from batchgrow.targets.machines import GENERATIONS, Target, parse
from batchgrow.tasks import Task
from experiments import cli

_CONFIG = cli.config_flag()
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 1, "Number of devices of all hosts together.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
_SECONDS_PER_EXAMPLE = flags.DEFINE_float(
    "seconds_per_example",
    None,
    "Predict the time to train from this time of an example, measured on one device.",
)
_SECONDS_PER_UPDATE = flags.DEFINE_float(
    "seconds_per_update", 0.0, "Additional seconds of each update, whatever its batch size."
)
_NETWORK = flags.DEFINE_enum(
    "network", "ring", list(time_to_train.NETWORKS), "How the devices are connected."
)
_DEVICE = flags.DEFINE_string(
    "device",
    None,
    f"Predict the time to train from this device's peak; one of: {', '.join(devices.PEAK_FLOPS)}.",
)
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.1, "With --device: assumed share of its peak. bench_imagenet measures it."
)
_GROW_DEVICES = flags.DEFINE_bool(
    "grow_devices", False, "Predict for more devices as the batch grows, --num_devices at first."
)
_DEVICES_PER_HOST = flags.DEFINE_integer("devices_per_host", 8, "Number of devices on one host.")
_INPUT_RATE = flags.DEFINE_float(
    "input_rate",
    float("inf"),
    "Examples/s that one host prepares; by default as many as needed.",
)
_BANDWIDTH = flags.DEFINE_float("bandwidth", 25.0, "Assumed GB/s from one device to the next.")
_LATENCY = flags.DEFINE_float("latency", 5.0, "Assumed microseconds from one device to the next.")
_TARGET = flags.DEFINE_string(
    "target", None, f"Compile for it: GENERATION:TOPOLOGY; one of: {', '.join(GENERATIONS)}."
)
_PROCESSES = flags.DEFINE_integer(
    "compile_processes", None, "With --target: compilations at a time; None: for every two cores."
)


# A flag -> those of which it needs one.
NEEDS = {
    "compile_processes": ("target",),
    "utilisation": ("device",),
    **dict.fromkeys(
        ("seconds_per_update", "network", "grow_devices", "devices_per_host")
        + ("input_rate", "bandwidth", "latency"),
        ("seconds_per_example", "device"),
    ),
}


def main(_: list[str]) -> int:
    """Prints the plan."""
    check_flags()
    config, num_devices = _CONFIG.value, _NUM_DEVICES.value
    if _TARGET.value is not None:
        return _print_forecast(config, parse(_TARGET.value))
    if num_devices < 1:
        raise ValueError(f"--num_devices={num_devices} must be 1 or more")
    plan = make_plan(config, num_examples_of(config))
    warn_of(plan)
    check_layouts(plan, num_devices, config)
    facts = plan.to_dict(num_devices=num_devices)
    predicts = _SECONDS_PER_EXAMPLE.value is not None or _DEVICE.value is not None
    if predicts and not isinstance(plan, FixedPlan):
        raise ValueError("plan.name 'follow' decides while it runs; its time cannot be predicted")
    if predicts and isinstance(plan, FixedPlan):
        facts["time"] = _time(config, plan)
    if _JSON.value:
        print(json.dumps(facts, indent=2))
        return 0
    if not isinstance(plan, FixedPlan):
        sizes = ", ".join(map(str, plan.batch_sizes()))
        print(f"batch sizes, as far as the measured noise allows: {sizes}")
        return 0
    # Where the devices grow with the batch, the table of the time has their numbers.
    print(plan.table(num_devices=None if _GROW_DEVICES.value else num_devices))
    longest = max(plan.at(s.start_examples).accumulation_epochs for s in plan.segments)
    forms = {
        "noise_scale": "noise scale: learning_rate N / (B (1 - momentum)); the form with (N/B - 1) "
        "is lower by B/N.\n",
        "diffusion": "diffusion: learning_rate sqrt(N / B), for steps that are normalised.\n",
    }
    print(
        f"\n{forms.get(plan.recipe.coupling.noise or '', '')}"
        f"Momentum forgets old gradients over B / (N (1 - momentum)) <= {longest:.2g} epochs."
    )
    if "time" in facts:
        print(f"\n{time_to_train.table(facts['time'])}\n")
        print("\n".join(f"- {line}" for line in facts["time"]["assumptions"]))
    return 0


def check_flags() -> None:
    """Refuses flags that nothing would obey.

    Raises:
      ValueError: for the first of them.
    """
    for name in ("num_devices", "seconds_per_example", "device", *NEEDS):
        flag, needed = flags.FLAGS[name], NEEDS.get(name, ())
        if not flag.present:
            continue
        if _TARGET.value is not None and "target" not in needed:
            raise ValueError(
                f"--{name}={flag.value} does not go with --target={_TARGET.value}, which names the "
                "machine; leave out one of them"
            )
        if needed and all(flags.FLAGS[other].value is None for other in needed):
            others = " or ".join(f"--{other}" for other in needed)
            raise ValueError(f"--{name}={flag.value} has no effect alone; add {others}")


def _print_forecast(config: ConfigDict, target: Target) -> int:
    """Prints what the compiler says of each batch size; the status is 1 if one does not fit."""
    num_examples, processes = num_examples_of(config), _PROCESSES.value
    found = forecast.forecast(config, target, num_examples, num_processes=processes)
    if _JSON.value:
        print(json.dumps(found, indent=2))
    else:
        print(f"{forecast.table(found)}\n")
        print("\n".join(f"- {line}" for line in forecast.notes(found)))
    return int(any("error" in update for update in found["updates"].values()))


def _time(config: ConfigDict, plan: FixedPlan) -> dict[str, Any]:
    """The prediction, with the lines that say what it assumes."""
    jax.config.update("jax_platforms", "cpu")  # it only counts, wherever this runs
    data = open_data(config, "train", to_read=False)
    task = make_task(config, axis_name=None, facts=model_facts(data))
    seconds_per_example, basis = _compute(config, task, data.example)
    hardware = time_to_train.Hardware(
        seconds_per_example=seconds_per_example,
        num_devices=_NUM_DEVICES.value,
        devices_per_host=_DEVICES_PER_HOST.value,
        bandwidth=1e9 * _BANDWIDTH.value,
        latency=1e-6 * _LATENCY.value,
        input_rate=_INPUT_RATE.value,
        grow_devices=_GROW_DEVICES.value,
        seconds_per_update=_SECONDS_PER_UPDATE.value,
        network=_NETWORK.value,
    )
    parameters = num_parameters(task, data.example)
    prediction = time_to_train.predict(plan, parameters, hardware)
    needed = prediction["needed_per_host"]
    prepares = "enough" if _INPUT_RATE.value == float("inf") else f"{_INPUT_RATE.value:,.0f}"
    prediction["assumptions"] = [
        basis,
        f"all-reduce of {parameters:,} float32 gradients in a {_NETWORK.value}, not overlapped: "
        f"2 (n - 1) / n of the bytes at {_BANDWIDTH.value:g} GB/s, and {_LATENCY.value:g} "
        "microseconds for each hop (not measured)",
        f"input, read ahead, for {_DEVICES_PER_HOST.value} devices a host: up to {needed:,.0f} "
        f"examples/s needed, {prepares} prepared",
        "not counted: evaluation, checkpoints, compilation, start, and that a device may be slower "
        "for each example if it has few",
    ]
    return prediction


def _compute(config: ConfigDict, task: Task, example: Any) -> tuple[float, str]:
    """Seconds per example on one device, and where that comes from."""
    device, given = _DEVICE.value or "", _SECONDS_PER_EXAMPLE.value
    if given is not None:
        if device:
            raise ValueError("--seconds_per_example and --device say the same; give one of them")
        return given, f"{given:g} s per example and device, as given, for every batch size"
    dtype = config.model.get("dtype", "float32")
    peak = devices.peak_flops(device, dtype)
    if peak is None:
        raise ValueError(
            f"--device={device}: no peak for {dtype} is known; give --seconds_per_example, or one "
            f"of: {', '.join(devices.PEAK_FLOPS)}"
        )
    if not 0 < _UTILISATION.value <= 1:
        raise ValueError(f"--utilisation={_UTILISATION.value} must be above 0 and at most 1")
    operations = training_flops(task, example)
    seconds = operations / (peak * _UTILISATION.value)
    return seconds, (
        f"{seconds:.3g} s per example and device: {operations / 1e9:.1f} GFLOP forward and back at "
        f"{_UTILISATION.value:.0%} (assumed) of the {peak / 1e12:g} TFLOP/s that the maker states "
        f"for {device} in {dtype}"
    )


if __name__ == "__main__":
    cli.run(main)
