"""The answer of `experiments.batch_size`, from measured times and noise. No flags, no JAX."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from batchgrow.plan import FixedPlan, FollowPlan, decay, replay
from batchgrow.plan.time_to_train import fit
from batchgrow.report.batch_figures import noise_panel, update_time_panel
from batchgrow.report.drawing import draw, png
from batchgrow.report.wording import duration
from batchgrow.text_table import text_table

Noise = Sequence[tuple[int, float]]  # (examples seen, noise scale in examples)


def answer(
    times: Mapping[int, float], noise: Noise, plan: FollowPlan, peak: float | None = None
) -> dict[str, Any]:
    """Returns the answer as plain numbers.

    Args:
      times: batch size -> seconds of an update on all devices together.
      noise: what a run of the recipe has measured, in order; may be empty.
      plan: grows the batch by the noise.
      peak: the share of the devices' peak that one example per second uses, if known.
    """
    fixed, slope = _fit(times)
    most = max(size / seconds for size, seconds in times.items())
    limit = 1 / slope if slope else most  # the examples a second of a very large batch
    fastest = max(limit, most)
    num_examples = plan.recipe.num_examples
    recipe = decay(plan.recipe, batch_multiple=plan.batch_multiple, exponent=plan.exponent)
    plans = {"recipe": recipe} | ({"suggested": replay(plan, noise)} if noise else {})
    return {
        "times": [
            {
                "batch_size": size,
                "update_seconds": seconds,
                "examples_per_second": size / seconds,
                "share_of_fastest": size / seconds / fastest,
                "share_of_peak": size / seconds * peak if peak else None,
                "epoch_seconds": num_examples / size * seconds,
            }
            for size, seconds in sorted(times.items())
        ],
        "seconds_per_update": fixed,
        "seconds_per_example": slope,
        "idle_below": fixed * limit,
        "noise": [
            {"epoch": position / num_examples, "noise_scale": scale} for position, scale in noise
        ],
        "wasted_above": noise[-1][1] if noise else None,
        "plans": {name: _facts(made, fixed, slope) for name, made in plans.items()},
    }


def _fit(times: Mapping[int, float]) -> tuple[float, float]:
    """(a, b) of seconds = a + b * batch size.

    If no size is slower, b is 0. One size alone does not tell the two apart: then a is 0, so that
    no larger batch is promised to be faster.
    """
    if len(times) == 1:
        ((size, seconds),) = times.items()
        return 0.0, seconds / size
    try:
        return fit(*times.items())
    except ValueError:
        return times[max(times)], 0.0


def _facts(plan: FixedPlan, fixed: float, slope: float) -> dict[str, Any]:
    """A plan with its predicted time. The measured times are those of all devices together."""
    seconds = sum(s.num_updates * (fixed + slope * s.batch_size) for s in plan.segments)
    stages = [(segment.start_examples, segment.batch_size) for segment in plan.segments]
    return {
        "batches": stages,
        "exponent": plan.exponent,
        "num_examples": plan.end_examples,
        "num_updates": plan.num_updates,
        "hours": seconds / 3600,
    }


def as_text(found: dict[str, Any]) -> str:
    """Returns the answer in words, after a table of the times."""
    cells = [["batch", "update ms", "examples/s", "of the fastest", "of peak", "epoch s"]]
    cells += [
        [
            str(row["batch_size"]),
            f"{1e3 * row['update_seconds']:.3g}",
            f"{row['examples_per_second']:,.0f}",
            f"{row['share_of_fastest']:.0%}",
            "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}",
            f"{row['epoch_seconds']:.3g}",
        ]
        for row in found["times"]
    ]
    lines = [*_about_times(found), _about_noise(found)]
    recipe, suggested = found["plans"]["recipe"], found["plans"].get("suggested")
    takes = f"the recipe takes {_cost(recipe)}"
    if suggested is None:
        lines.append(f"No plan can be suggested; {takes}.")
    elif len(suggested["batches"]) == 1:
        lines.append(f"The noise allows no larger batch: keep the recipe; {takes}.")
    else:
        lines += [
            f"The suggested plan takes {_cost(suggested)}; {takes}. To use it:",
            "  " + " ".join(config_flags(suggested)),
        ]
    return "\n".join([text_table(cells), "", *lines])


def config_flags(plan: dict[str, Any]) -> list[str]:
    """Returns the flags that make a config follow a plan of the answer."""
    batches = " ".join(f"{position}:{size}" for position, size in plan["batches"])
    return [
        "--config.plan.name=ramp",
        "--config.plan.initial_multiple=1.0",
        f"--config.plan.max_batch_size={max(size for _, size in plan['batches']):.1f}",
        f"--config.plan.exponent={plan['exponent']:g}",
        f"--config.plan.batches='{batches}'",
    ]


def _about_times(found: dict[str, Any]) -> list[str]:
    per_example = f"{1e6 * found['seconds_per_example']:.3g} microseconds"
    if len(found["times"]) == 1:
        return [
            f"An example takes {per_example}. Only one batch size was timed, so it is unknown "
            "whether a larger one saves time. Raise --max_batch_size."
        ]
    return [
        f"An update takes {1e3 * found['seconds_per_update']:.3g} ms, and {per_example} for each "
        "example.",
        f"Below a batch of {_size(found['idle_below'])} the hardware is idle more than half of the "
        "time.",
    ]


def _about_noise(found: dict[str, Any]) -> str:
    if not found["noise"]:
        return "The noise scale is still unknown: measure a longer run (--epochs)."
    first, last = found["noise"][0], found["noise"][-1]
    idle, wasted = found["idle_below"], found["wasted_above"]
    text = (
        f"The noise scale was {_size(first['noise_scale'])} examples at epoch {first['epoch']:.3g} "
        f"and {_size(wasted)} at epoch {last['epoch']:.3g}: a larger batch wastes examples."
    )
    if wasted < idle:
        text += " No batch uses both well: between the two, the hardware idles and examples are "
        text += "wasted."
    return text


def _size(examples: float) -> str:
    return f"{max(1, round(examples)):,}"


def _cost(plan: dict[str, Any]) -> str:
    return f"{plan['num_updates']:,} updates and {duration(3600 * plan['hours'])}"


def figure(found: dict[str, Any], num_examples: int) -> bytes:
    """Returns the answer as a PNG of two panels.

    Args:
      found: the result of `answer`.
      num_examples: N, the size of the training set.
    """
    seconds = [(row["batch_size"], row["update_seconds"]) for row in found["times"]]
    fitted = found["seconds_per_update"], found["seconds_per_example"]
    noise = [(row["epoch"], row["noise_scale"]) for row in found["noise"]]
    plans = {
        name: [
            *((position / num_examples, size) for position, size in plan["batches"]),
            (plan["num_examples"] / num_examples, plan["batches"][-1][1]),
        ]
        for name, plan in found["plans"].items()
    }
    return png(
        draw(
            update_time_panel(seconds, fitted, found["idle_below"], found["wasted_above"]),
            noise_panel(noise, plans),
            columns=2,
            one_legend=False,
        ),
        dpi=100,
    )


def sizes_up_to(first: int, most: int) -> list[int]:
    """Returns first, 2 first, 4 first, ... and not more than `most`; `first` in any case."""
    return [first << k for k in range(max(1, int(math.log2(max(1, most / first))) + 1))]
