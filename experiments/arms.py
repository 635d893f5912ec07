"""The schedules that `experiments.schedules` compares, and their table."""

import copy
import math
from typing import Any

from batchgrow.config import ConfigDict
from batchgrow.report import PlanGroup, paired_difference, summarize
from batchgrow.text_table import text_table
from experiments.trials import piece_size_of

ARMS = (
    "recipe",
    "smith",
    "seesaw",
    "seesaw_betas",
    "large_sqrt",
    "large_linear",
    "ramp",
    "late_switch",
    "follow",
)


def arm_of(config: ConfigDict, arm: str, multiple: int, switch: float) -> ConfigDict:
    """Returns the config of an arm.

    Raises:
      ValueError: for an unknown arm, a multiple that is not a power of 2, or a wrong switch.
    """
    if multiple < 2 or multiple & (multiple - 1):
        raise ValueError(f"--multiple={multiple} must be a power of 2, and 2 or more")
    if not 0 < switch < 1:
        raise ValueError(f"--switch={switch} must be above 0 and below 1")
    config = copy.deepcopy(config)
    config.variant = arm
    plan, batch_size = config.plan, config.recipe.batch_size
    plan.name, plan.exponent, plan.momentum, plan.initial_multiple = "decay", None, None, 1.0
    plan.momentum_rise_epochs, plan.max_batch_size = 0.0, float(multiple * batch_size)
    config.optimizer.betas_follow_batch = arm == "seesaw_betas"
    match arm:
        case "recipe":
            plan.exponent = 1.0
        case "smith" | "seesaw" | "seesaw_betas":
            plan.name, plan.exponent = "grow", 1.0 if arm == "smith" else 0.5
        case "large_sqrt" | "large_linear":
            plan.initial_multiple = float(multiple)
            plan.exponent = 0.5 if arm == "large_sqrt" else 1.0
        case "ramp":
            sizes = [batch_size * 2**k for k in range(int(math.log2(multiple)) + 1)]
            part = _num_examples(config) / 2 / (len(sizes) - 1)
            plan.batches = " ".join(f"{round(k * part)}:{b}" for k, b in enumerate(sizes))
            plan.name, plan.exponent = "ramp", 0.0
        case "late_switch":
            start = round(switch * _num_examples(config))
            plan.batches = f"0:{batch_size} {start}:{multiple * batch_size}"
            plan.name, plan.exponent = "ramp", 0.0
        case "follow":
            plan.name, noise, epochs = "follow", config.noise, config.recipe.num_epochs
            noise.share = noise.share or 0.05
            noise.piece_size = piece_size_of(config)
            # Short runs decide often enough too, by noise that is recent.
            noise.horizon_epochs = min(noise.horizon_epochs, epochs / 10)
            plan.decide_every_epochs = min(plan.decide_every_epochs, epochs / 50)
        case _:
            raise ValueError(f"unknown arm {arm!r}; choose {', '.join(ARMS)}")
    return config


def _num_examples(config: ConfigDict) -> float:
    """Examples of the whole run."""
    if config.data.num_train_examples is None:
        raise ValueError("data.num_train_examples is not set; set it, so that stages have a place")
    return config.recipe.num_epochs * config.data.num_train_examples


def table(groups: list[PlanGroup], predicted: dict[str, float | None]) -> list[dict[str, Any]]:
    """Returns a row for each arm, in the order of `ARMS`: plain numbers.

    The differences are to the recipe, paired by seed, with a 95 % t-interval. "num_diverged" counts
    the seeds without a finished run. An arm without any run has no row.
    """
    by_arm = {group.variant: group for group in groups}
    recipe = by_arm.get("recipe")
    rows = []
    for arm in ARMS:
        group = by_arm.get(arm)
        if group is None:
            continue
        test = summarize([*group.tests.values()])
        loss = summarize([*group.finals("train_loss").values()])
        seconds = [run.summary["wall_seconds"] for run in group.finished if run.summary]
        paired = paired_difference(recipe, group) if recipe and arm != "recipe" else None
        rows.append(
            {
                "arm": arm,
                "updates": group.num_updates,
                "metric": f"test_{group.metric.name}",
                "test": vars(test) if test else None,
                "n": test.n if test else 0,
                "num_diverged": len({run.seed for run in group.runs}) - len(group.finished),
                "train_loss": vars(loss) if loss else None,
                "paired": vars(paired) if paired else None,
                "wall_seconds": sum(seconds) / len(seconds) if seconds else None,
                "predicted_seconds": predicted.get(arm),
            }
        )
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table as text."""
    lines = [["arm", "updates", "test", "sd", "n", "minus recipe", "95 % interval", "train loss"]]
    lines[0] += ["s", "plan s"]
    some_diverged = any(row["num_diverged"] for row in rows)
    for row in rows:
        test, paired = row["test"] or {"mean": None, "stdev": None}, row["paired"] or {}
        interval = "-"
        if paired.get("low") is not None:
            interval = f"{paired['low']:+.4f} to {paired['high']:+.4f}"
        if paired and some_diverged:
            interval += f" (n = {paired['n']})"
        diverged = f", {row['num_diverged']} diverged" if row["num_diverged"] else ""
        lines.append(
            [
                row["arm"],
                f"{row['updates']:,}",
                "-" if test["mean"] is None else f"{test['mean']:.4f}",
                "-" if test["stdev"] is None else f"{test['stdev']:.4f}",
                f"{row['n']}{diverged}",
                f"{paired['mean']:+.4f}" if paired else "-",
                interval,
                "-" if row["train_loss"] is None else f"{row['train_loss']['mean']:.4f}",
                "-" if row["wall_seconds"] is None else f"{row['wall_seconds']:.0f}",
                "-" if row["predicted_seconds"] is None else f"{row['predicted_seconds']:.0f}",
            ]
        )
    metric = rows[0]["metric"] if rows else ""
    return f"{metric}: mean over n seeds\n" + text_table(lines)
