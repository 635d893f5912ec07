"""Prints, converts and plots plans without a config file, and sends runs to a tracker.

    python -m batchgrow plan --batch_size=128 --momentum=0.9 --num_examples=50000 \\
        --num_epochs=200 --learning_rate=0.1 --curve=step --boundaries_epochs=60,120,160 \\
        --factor=0.2
    python -m batchgrow plan ... --to=csv --out=plan.csv
    python -m batchgrow plan --from=plan.csv --to=megatron
    python -m batchgrow track RUN --wandb PROJECT --follow

Needs NumPy only; `--plot` needs matplotlib, `--wandb` needs wandb.
"""

import argparse
import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from batchgrow import tracking
from batchgrow.names import parameters
from batchgrow.plan import FixedPlan, Recipe, curves, from_megatron, grow, ramp, to_megatron
from batchgrow.plan.coupling import COUPLINGS, coupling_of
from batchgrow.plan.exchange import from_text, stages, to_csv, to_json, to_olmo_core

FORMS = ("table", "csv", "json", "megatron", "olmo-core")
RECIPE = ("batch_size", "momentum", "num_examples", "num_epochs", "learning_rate")
# The parser leaves options of a plan that are not given at None, so that it is known which are.
DEFAULTS = {
    "optimizer": "momentum",
    "curve": "constant",
    "power": 1.0,
    "warmup_epochs": 0.0,
    "initial_learning_rate": 0.0,
}
# The options that go with --from; all others describe a plan.
BESIDE_FROM = ("source", "to", "tokens_per_example", "num_devices", "out", "plot", "command")
GROWTH = ("exponent", "batch_multiple")
NOT_WITH_BATCHES = ("max_batch_size", "initial_multiple", "num_growths", "ladder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 2 for a wrong argument."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except BrokenPipeError:  # The reader, such as `head`, has closed the pipe.
        sys.stderr.close()
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"batchgrow: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="batchgrow", allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    plan = commands.add_parser("plan", help="print, convert or plot a plan", allow_abbrev=False)
    plan.set_defaults(command=_plan)
    _add_recipe(plan.add_argument_group("recipe (or --from)"))
    _add_growth(plan.add_argument_group("growth"))
    output = plan.add_argument_group("output")
    output.add_argument("--to", choices=FORMS, default="table")
    output.add_argument("--tokens_per_example", type=int, help="for megatron and olmo-core: tokens")
    output.add_argument("--num_devices", type=int, help="table: show the batch of each device")
    output.add_argument("--out", type=pathlib.Path, help="write there, not to the terminal")
    output.add_argument("--plot", type=pathlib.Path, help="draw the plan into this .png or .svg")

    track = commands.add_parser("track", help="send the rows of a run to a tracker")
    track.set_defaults(command=_track)
    track.add_argument("folder", type=pathlib.Path, help="the run folder")
    track.add_argument("--wandb", required=True, metavar="PROJECT", help="Weights & Biases")
    track.add_argument("--follow", action="store_true", help="wait for rows until the run ends")
    return parser


def _add_recipe(group: Any) -> None:
    group.add_argument("--from", dest="source", type=pathlib.Path, help="a CSV or JSON table")
    group.add_argument("--batch_size", type=int, help="batch size of the recipe")
    group.add_argument(
        "--momentum", type=float, help="momentum of the recipe; for Adam b1, for sgd none"
    )
    group.add_argument("--optimizer", choices=tuple(COUPLINGS))
    group.add_argument("--num_examples", type=int, help="N, the size of the training set")
    group.add_argument("--num_epochs", type=float, help="length of the recipe")
    group.add_argument("--learning_rate", type=float, help="highest learning rate")
    group.add_argument("--curve", choices=tuple(curves.CURVES))
    group.add_argument(
        "--boundaries_epochs",
        type=_numbers,
        help="step: the epochs of the steps, 60,120,160",
    )
    group.add_argument("--factor", type=float, help="step: factor at each boundary")
    group.add_argument(
        "--final_learning_rate",
        type=float,
        help="cosine, polynomial, wsd: learning rate at the end",
    )
    group.add_argument("--start_epochs", type=float, help="cosine: epoch where the decay starts")
    group.add_argument("--power", type=float, help="polynomial, wsd: power of the decay")
    group.add_argument("--decay_epochs", type=float, help="wsd: length of the decay at the end")
    group.add_argument(
        "--decay_rate", type=float, help="exponential, inverse_time: rate of an epoch"
    )
    group.add_argument("--warmup_epochs", type=float, help="length of the warm-up")
    group.add_argument("--initial_learning_rate", type=float, help="learning rate at epoch 0")


def _add_growth(group: Any) -> None:
    group.add_argument("--num_growths", type=int, help="most growths; default: no limit")
    group.add_argument(
        "--max_batch_size", type=float, help="largest batch; default: a tenth of the data"
    )
    group.add_argument("--initial_multiple", type=float, help="of the first batch")
    group.add_argument(
        "--plan_momentum", type=float, help="momentum of the plan; default: the recipe's"
    )
    group.add_argument(
        "--exponent",
        type=float,
        help="p in learning rate ~ batch^p; default: by optimizer, and 0 with --batches",
    )
    group.add_argument("--ladder", type=float, help="growth factor on smooth curves")
    group.add_argument("--batch_multiple", type=int, help="divides every batch size")
    group.add_argument(
        "--batches",
        help="given batch sizes instead: Megatron-LM's '0:256 50K:512', or its 'START INCREMENT "
        "SAMPLES' that ends at --batch_size",
    )


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(",") if number)


def _plan(options: argparse.Namespace) -> None:
    if options.source is not None:
        for name, value in vars(options).items():
            if value is not None and name not in BESIDE_FROM:
                raise ValueError(f"--from has the whole plan: leave out --{name}")
        plan = from_text(options.source.read_text(encoding="utf-8"))
    else:
        plan = _make_plan(options)
    text = _text(plan, options)
    if options.plot is not None:
        with _naming(f"--plot={options.plot}"):
            plot(plan, options.plot)
    if options.out is not None:
        with _naming(f"--out={options.out}"):
            options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    for warning in plan.warnings:
        print(f"batchgrow: warning: {warning}", file=sys.stderr)


@contextlib.contextmanager
def _naming(option: str) -> Iterator[None]:
    """Adds the option to the error of a file that cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{option} cannot be written ({reason}); take another path") from error


def _filled(options: argparse.Namespace) -> argparse.Namespace:
    """Returns the options. Each option that was not given has its default."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    defaults: dict[str, Any] = dict(DEFAULTS)
    if not coupling_of(given.get("optimizer", DEFAULTS["optimizer"])).uses_momentum:
        defaults["momentum"] = 0.0
    return argparse.Namespace(**(vars(options) | defaults | given))


def _check_together(options: argparse.Namespace) -> None:
    """Raises a ValueError for an option that the others leave without effect."""
    given = {name for name, value in vars(options).items() if value is not None}
    for name in NOT_WITH_BATCHES:
        if "batches" in given and name in given:
            raise ValueError(f"--{name} does not go with --batches, which says all batch sizes")
    curve = options.curve or DEFAULTS["curve"]
    others = set().union(*map(parameters, curves.CURVES.values())) - {*RECIPE}
    for name in sorted(others & given - parameters(curves.CURVES[curve]).keys()):
        raise ValueError(f"--{name} does not go with --curve={curve}: leave it out")
    if "initial_learning_rate" in given and "warmup_epochs" not in given:
        raise ValueError("--initial_learning_rate goes with --warmup_epochs: give both")


def _make_plan(options: argparse.Namespace) -> FixedPlan:
    _check_together(options)
    options = _filled(options)
    missing = [name for name in RECIPE if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--{missing[0]} is missing: a recipe needs it")
    recipe = Recipe(
        options.batch_size,
        options.momentum,
        _curve(options),
        options.num_examples,
        options.num_epochs,
        options.optimizer,
    )
    growth = {name: getattr(options, name) for name in (*GROWTH, *NOT_WITH_BATCHES)}
    growth = {name: value for name, value in growth.items() if value is not None}
    growth["momentum"] = options.plan_momentum
    if options.batches is not None:
        return ramp(recipe, from_megatron(options.batches, options.batch_size), **growth)
    return grow(recipe, **growth)


def _curve(options: argparse.Namespace) -> curves.Curve:
    function = curves.CURVES[options.curve]
    takes = parameters(function)
    given = {k: v for k, v in vars(options).items() if k in takes and v is not None}
    missing = [name for name, is_needed in takes.items() if is_needed and name not in given]
    if missing:
        raise ValueError(f"--{missing[0]} is missing: --curve={options.curve} needs it")
    curve = function(**given)
    return curves.with_warmup(curve, options.warmup_epochs, options.initial_learning_rate)


def _text(plan: FixedPlan, options: argparse.Namespace) -> str:
    """Returns the plan in the wanted form, with a line break at the end."""
    tokens = options.tokens_per_example
    match options.to:
        case "csv":
            return to_csv(plan)
        case "json":
            return to_json(plan)
        case "megatron":
            table = [(position * (tokens or 1), size) for position, size in stages(plan)]
            return to_megatron(table) + "\n"
        case "olmo-core":
            if tokens is None:
                raise ValueError("--tokens_per_example is missing: OLMo-core counts tokens")
            return json.dumps(to_olmo_core(plan, tokens), indent=2) + "\n"
    return plan.table(num_devices=options.num_devices) + "\n"


def plot(plan: FixedPlan, path: pathlib.Path) -> None:
    """Draws the batch size and the learning rate by epoch into a file.

    Raises:
      ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, sharex=True)
    positions, sizes, rates = [], [], []
    for segment in plan.segments:
        stride, last = max(1, math.ceil(segment.num_updates / 500)), segment.num_updates - 1
        updates = np.unique([*range(0, last, stride), last])
        positions += (segment.start_examples + segment.batch_size * updates).tolist()
        sizes += [segment.batch_size] * len(updates)
        rates += plan.learning_rates(segment, updates).tolist()
    epochs = np.array([*positions, plan.end_examples]) / plan.recipe.num_examples
    top.step(epochs, [*sizes, sizes[-1]], where="post", color="C0")
    bottom.step(epochs, [*rates, rates[-1]], where="post", color="C1")
    top.set(ylabel="batch size", yscale="log")
    bottom.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
    figure.savefig(path)


def _track(options: argparse.Namespace) -> None:
    if not options.folder.is_dir():
        raise ValueError(f"{options.folder} is not a run folder")
    seconds = 10.0 if options.follow else None
    tracking.track_with_wandb(options.folder, options.wandb, poll_seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
