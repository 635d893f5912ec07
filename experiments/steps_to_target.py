"""Steps to a target loss against the batch size, each size with its own tuned learning rate.

    python -m experiments.steps_to_target --config=configs/digits.py --target=0.2

As Shallue et al. (2019, arXiv 1811.03600): with small batches, twice the batch takes half of the
steps (perfect scaling); with large ones, hardly fewer. Each trial starts anew, at a constant
learning rate, and ends when the test loss is at most --target. A trial evaluates whenever its steps
have grown by 5 %. Rates are multiples of the recipe's by powers of 2; the range widens until the
best rate of a size is inside of it. The curve S_min (1 + B_crit / B) is fitted to the fewest steps,
and B_simple is measured along the best run of the smallest batch that reaches the target, at
quarters of it. A size that does not reach it has no steps, and is not part of the fit.
"""

import json
import math
import statistics
import sys
from contextlib import ExitStack
from typing import Any

from absl import flags
from etils import epath

from batchgrow.compile import enable_compilation_cache
from batchgrow.plan import Plan
from batchgrow.plan.descent import find_descent
from batchgrow.plan.noise import NOISE_SCALE, fit_steps
from batchgrow.report.batch_figures import steps_panel
from batchgrow.report.drawing import draw, png
from batchgrow.run import environment
from batchgrow.text_table import text_table
from experiments import advice, cli
from experiments.launch import experiment_of, launch
from experiments.result_files import check_writable, write_result
from experiments.trials import Trials, constant_plan, piece_size_of, tune

_CONFIG = cli.config_flag()
_TARGET = flags.DEFINE_float("target", None, "Test loss at which a trial ends.")
_MAX_BATCH_SIZE = flags.DEFINE_integer("max_batch_size", None, "Largest batch size; None: N / 2.")
_MAX_EPOCHS = flags.DEFINE_float("max_epochs", 50.0, "Most epochs of a trial.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Trials of each learning rate; the median counts.", lower_bound=1
)
_NOISE = flags.DEFINE_integer("noise_examples", 4096, "Examples for B_simple, at most an epoch.")
_OUT = flags.DEFINE_string(
    "out", "runs/steps_to_target", "Path of the results, without .json and .png."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")

GROWTH = 1.05  # of the steps between two evaluations


def main(_: list[str]) -> int:
    """Runs the trials, and prints the table."""
    config = _CONFIG.value
    target = _TARGET.value
    if target is None:
        raise ValueError("--target is missing: the test loss at which a trial ends")
    out = epath.Path(_OUT.value)
    check_writable(out)
    enable_compilation_cache(config.run.compilation_cache_dir)
    found = measure(config, target)
    found |= {"config": config.name, "target": target, **environment.recorded()}
    steps = [(row["batch_size"], row["steps"]) for row in found["sizes"] if row["steps"]]
    fitted = None if found["no_fit"] else (found["S_min"], found["B_crit"])
    figure = png(draw(steps_panel(steps, fitted, found["B_simple"])), dpi=100) if steps else None
    write_result(out, found, figure)
    where = f"{out}.png" if figure else f"{out}.json"
    print(json.dumps(found) if _JSON.value else f"{as_text(found)}\n{where}")
    return 0


def measure(config: Any, target: float) -> dict[str, Any]:
    """Returns the fewest steps of each batch size, the fitted curve and the noise scale.

    Where no curve can be fitted, `no_fit` says why.

    Raises:
      ValueError: if there is a single batch size.
    """
    base = experiment_of(config)
    first, num_examples = config.recipe.batch_size, base.train_data.num_examples
    most = _MAX_BATCH_SIZE.value or num_examples // 2
    sizes = advice.sizes_up_to(first, most)
    if len(sizes) < 2:
        raise ValueError(
            f"--max_batch_size={most} leaves the batch size {first} alone; take {2 * first} or more"
        )
    rate = find_descent(base.plan.recipe).ceiling(0)  # its highest
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        seeds = range(_SEEDS.value)
        trials = [stack.enter_context(_trials(config, seed)) for seed in seeds]
        for size in sizes:
            limit = int(_MAX_EPOCHS.value * num_examples / size)

            def steps_at(rate: float, size: int = size, limit: int = limit) -> float:
                return statistics.median(
                    _steps(t, base.plan, size, rate, limit, target) for t in trials
                )

            found = tune(steps_at, rate)
            best = min(found, key=lambda rate: found[rate])
            tried = {f"{r:.4g}": n if math.isfinite(n) else None for r, n in found.items()}
            row = {"batch_size": size, "steps": None, "learning_rate": None, "steps_by_rate": tried}
            if math.isfinite(found[best]):
                row |= {"steps": found[best], "learning_rate": best}
                rate = best  # the next size starts from here
            rows.append(row)
            print(f"batch {size}: {_found(row)}", file=sys.stderr)
        reached = [row for row in rows if row["steps"]]
        noise = _noise_along(trials[0], base.plan, reached[0]) if reached else []
    known = [scale for scale in noise if scale is not None]
    return {
        "sizes": rows,
        **fitted(reached),
        "noise_by_quarter": noise,
        "B_simple": statistics.fmean(known) if known else None,
    }


def fitted(reached: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns S_min and B_crit of the rows that reach the target; None, and why, without a fit."""
    if len(reached) < 2:
        why = "fewer than two batch sizes reach the target; take a higher one or more --max_epochs"
        return {"S_min": None, "B_crit": None, "no_fit": why}
    try:
        least, critical = fit_steps(
            [row["batch_size"] for row in reached], [row["steps"] for row in reached]
        )
    except ValueError as error:
        return {"S_min": None, "B_crit": None, "no_fit": str(error)}
    return {"S_min": least, "B_crit": critical, "no_fit": None}


def _found(row: dict[str, Any]) -> str:
    if row["steps"] is None:
        return f"no rate reaches the target ({', '.join(row['steps_by_rate'])} tried)"
    return f"{row['steps']} steps at rate {row['learning_rate']:.4g}"


def _trials(config: Any, seed: int) -> Trials:
    with config.unlocked():
        config.seed = seed
    experiment, piece_size = experiment_of(config), piece_size_of(config)
    examples = min(_NOISE.value, experiment.train_data.num_examples)
    return Trials(experiment, piece_size=piece_size, num_pieces=max(2, examples // piece_size))


def _steps(
    trials: Trials, plan: Plan, batch_size: int, rate: float, limit: int, target: float
) -> float:
    """The steps to the target; inf if it is not reached within the limit."""
    points = list(constant_plan(plan, batch_size, rate, limit).points())
    state, done = trials.engine.initial_state(), 0
    while done < limit:
        until = min(limit, max(done + 1, round(GROWTH * done)))
        state, done = trials.advance(state, points[done:until]), until
        loss = trials.test_loss(state)
        if loss <= target:
            return float(done)
        if not math.isfinite(loss):
            break
    return math.inf


def _noise_along(trials: Trials, plan: Plan, row: dict[str, Any]) -> list[float | None]:
    """The noise scale after each quarter of the best run of a batch size, the start first."""
    size, steps = row["batch_size"], int(row["steps"])
    points = list(constant_plan(plan, size, row["learning_rate"], steps).points())
    state, found, done = trials.engine.initial_state(), [], 0
    for quarter in range(5):
        until = quarter * steps // 4
        state, done = trials.advance(state, points[done:until]), until
        found.append(trials.noise(state, done * size).get(NOISE_SCALE))
    return found


def as_text(found: dict[str, Any]) -> str:
    """Returns a line for each batch size, and the fit."""
    least, critical, no_fit = found["S_min"], found["B_crit"], found["no_fit"]
    cells = [["batch", "steps", "examples", "fitted steps", "learning rate"]]
    for row in found["sizes"]:
        size, steps = row["batch_size"], row["steps"]
        fewest = "-" if no_fit else f"{least * (1 + critical / size):.0f}"
        if steps is None:
            cells.append([str(size), "not reached", "-", fewest, "-"])
            continue
        rate = f"{row['learning_rate']:.4g}"
        cells.append([str(size), f"{steps:g}", f"{size * steps:,.0f}", fewest, rate])
    scales = [f"{scale:.0f}" if scale else "unknown" for scale in found["noise_by_quarter"]]
    fit = f"no fit: {no_fit}" if no_fit else f"fitted: {least:.1f} (1 + {critical:.0f} / B)"
    noise = f"B_simple at quarters of the smallest batch's run: {', '.join(scales)}"
    return "\n".join([text_table(cells), "", fit, *([noise] if scales else [])])


if __name__ == "__main__":
    launch(main)
