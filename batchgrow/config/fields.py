"""Every field of a config: its default, what it may be, and what it means.

Nothing under `run` changes the trajectory beyond rounding, apart from "workers" as `run.input`,
which crop images in a way of their own. Everything else does. A task, a model and an optimizer of
your own have fields of their own beside these.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from batchgrow.config.kinds import (
    DECAY,
    FLAG,
    NAMES,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    TEXT,
    Kind,
    maybe,
    number,
    numbers,
    one_of,
    whole,
)
from batchgrow.data.augment import AUGMENTATIONS, VIEWS
from batchgrow.data.records import ON_BAD_RECORD
from batchgrow.experiment import INPUTS
from batchgrow.names import find, flatten, hint, parameters, takes_any
from batchgrow.optimizer import DECAY_ON, OPTIMIZERS
from batchgrow.plan.curves import CURVES

MOMENTUM_CURVES = ("constant", "one_cycle")
PLANS = ("decay", "hybrid", "grow", "ramp", "follow")


class Field(NamedTuple):
    """A field: its dotted name, its default, what it may be, and what it means."""

    name: str
    default: Any
    kind: Kind
    meaning: str


FIELDS = (
    Field("name", "", TEXT, "name of the experiment in messages and in the report"),
    Field("variant", "", TEXT, "variant of the config in messages and in the report"),
    Field("seed", 0, whole(0, 2**32 - 1), "of parameters, stream order, augmentation and dropout"),
    Field(
        "task.name", "classification", TEXT, "classification, language, regression, module:Class"
    ),
    Field("task.augment", "none", one_of(*AUGMENTATIONS), "augmentation of training images"),
    Field("task.mean", None, maybe(numbers(number())), "mean of pixels; None: 0..255 becomes 0..1"),
    Field(
        "task.std", None, maybe(numbers(POSITIVE)), "standard deviation of pixels; None: as mean"
    ),
    Field("task.label_smoothing", 0.0, DECAY, "probability spread evenly over all classes"),
    Field("task.brightness", 0.0, SHARE, "largest change of brightness in training"),
    Field("task.contrast", 0.0, SHARE, "largest change of contrast in training"),
    Field("task.saturation", 0.0, SHARE, "largest change of saturation in training"),
    Field("task.random_erasing", 0.0, SHARE, "probability of a rectangle of random pixels"),
    Field("task.cutout", 0, whole(0, 2**14), "side in pixels of a square set to the mean; 0: none"),
    Field("task.test_views", "one", one_of(*VIEWS), "views of a test image that are averaged"),
    Field(
        "data.name",
        "",
        TEXT,
        "npz:, images:, text:, csv:, series:PATH; hf:, tfds:NAME; module:function",
    ),
    Field(
        "data.train_split", "train", TEXT, "to train on, or train[:640]; replaces {split} in a path"
    ),
    Field(
        "data.test_split", "test", TEXT, "to test on, or train[640:]; replaces {split} in a path"
    ),
    Field(
        "data.test_share", None, maybe(number(above=0, below=1)), "share of one split to test on"
    ),
    Field(
        "data.columns", None, maybe(NAMES), "arrays or columns to read; None: the task's, or all"
    ),
    Field("data.target", None, maybe(NAMES), 'columns of a csv to predict, "price,area"'),
    Field(
        "data.image_size", None, maybe(whole(1, 2**14)), "side in pixels; None: all have one size"
    ),
    Field("data.tokens", "characters", one_of("characters", "bytes"), "what a token of a text is"),
    Field(
        "data.context",
        None,
        maybe(whole(1, 2**24)),
        "tokens of a text, or rows of a series, that a model sees",
    ),
    Field(
        "data.on_bad_record", "stop", one_of(*ON_BAD_RECORD), "bad records: stop, or take the next"
    ),
    Field(
        "data.num_train_examples",
        None,
        maybe(whole(1, 2**40)),
        "how many the training set must have; None: any number",
    ),
    Field(
        "data.num_test_examples",
        None,
        maybe(whole(1, 2**40)),
        "how many the test set must have; None: any number",
    ),
    Field("model.name", "", TEXT, "name in batchgrow/models, or module:Class of Flax Linen or NNX"),
    Field(
        "model.ghost_momentum", None, maybe(DECAY), "of running statistics, per ghost; None: 0.9"
    ),
    Field("init.run", None, maybe(TEXT), "run folder or checkpoint to start from; None: random"),
    Field("init.layers", None, maybe(NAMES), 'layers to take, "*,!classifier"; None: all'),
    Field("init.frozen", None, maybe(NAMES), 'layers that stay as they are, "*,!classifier"'),
    Field("ghost_batch_size", None, maybe(whole(1, 2**31)), "examples that share batch statistics"),
    Field(
        "optimizer.name", "momentum", one_of(*OPTIMIZERS, own=True), "optimizer or module:function"
    ),
    Field("optimizer.weight_decay", 0.0, NOT_NEGATIVE, "decoupled for adamw and lamb, else L2"),
    Field("optimizer.l1", 0.0, NOT_NEGATIVE, "coefficient of L1, where weight decay acts"),
    Field("optimizer.decay_on", "all", one_of(*DECAY_ON), "kernels: no norms, biases, embeddings"),
    Field("optimizer.b2", 0.999, DECAY, "b2 of adam, adamw and lamb"),
    Field("optimizer.epsilon", 1e-8, NOT_NEGATIVE, "of adam, adamw, lamb, rmsprop, adagrad"),
    Field(
        "optimizer.betas_follow_batch",
        False,
        FLAG,
        "b1, b2 keep their half-life in examples; rows state b1 of the recipe's batch",
    ),
    Field("optimizer.b1_floor", 0.5, DECAY, "least b1 or rmsprop_decay with betas_follow_batch"),
    Field("optimizer.b2_floor", 0.9, DECAY, "least b2 with betas_follow_batch"),
    Field("optimizer.decay_follows_batch", True, FLAG, "keep the time constant of adamw's decay"),
    Field("optimizer.rmsprop_decay", 0.9, DECAY, "decay rate of rmsprop"),
    Field("optimizer.rmsprop_bias_correction", False, FLAG, "of rmsprop; published without it"),
    Field("optimizer.adagrad_initial", 0.0, NOT_NEGATIVE, "first sum of squares of adagrad"),
    Field("optimizer.trust_coefficient", 0.001, POSITIVE, "trust coefficient of lars"),
    Field("optimizer.debias_momentum", False, FLAG, "momentum and nesterov start at full rate"),
    Field("optimizer.clip_norm", None, maybe(POSITIVE), "largest gradient norm; None: no clipping"),
    Field("optimizer.average_epochs", None, maybe(POSITIVE), "time constant of averaged weights"),
    Field("recipe.num_epochs", None, maybe(number(above=0, most=1e9)), "epochs; must be set"),
    Field("recipe.batch_size", None, maybe(whole(1, 2**40)), "on all devices; must be set"),
    Field("recipe.momentum", 0.9, DECAY, "momentum, or b1 of adam, adamw and lamb"),
    Field(
        "recipe.momentum_curve",
        "constant",
        one_of(*MOMENTUM_CURVES, own=True),
        "one_cycle: falls until warmup_epochs and rises to the end",
    ),
    Field("recipe.lowest_momentum", 0.85, DECAY, 'of "one_cycle"'),
    Field("recipe.curve", "step", one_of(*CURVES, own=True), "curve of the learning rate"),
    Field("recipe.learning_rate", None, maybe(POSITIVE), "initial; None: by learning_rates"),
    Field("recipe.boundaries_epochs", (), numbers(POSITIVE), 'epochs where "step" changes'),
    Field("recipe.factor", 1.0, POSITIVE, 'factor of "step" at each boundary'),
    Field("recipe.decay_rate", 1.0, POSITIVE, 'rate per epoch of "exponential", "inverse_time"'),
    Field("recipe.final_learning_rate", 0.0, NOT_NEGATIVE, 'end of "cosine", "polynomial", "wsd"'),
    Field("recipe.decay_start_epochs", 0.0, NOT_NEGATIVE, 'epoch where "cosine" starts to decay'),
    Field("recipe.power", 1.0, number(above=0, most=100), 'power of "polynomial" and "wsd"'),
    Field("recipe.decay_epochs", 0.0, NOT_NEGATIVE, 'length of the decay at the end of "wsd"'),
    Field("recipe.warmup_epochs", 0.0, NOT_NEGATIVE, "length of the linear warm-up; 0: none"),
    Field("recipe.warmup_learning_rate", 0.0, NOT_NEGATIVE, "learning rate at epoch 0"),
    Field("plan.name", "decay", one_of(*PLANS), "kind of plan"),
    Field(
        "plan.max_batch_size", None, maybe(number(1, infinite=True)), "None: by N/10 and the curve"
    ),
    Field("plan.initial_multiple", 1.0, POSITIVE, "factor of the first batch; the rate follows it"),
    Field("plan.momentum", None, maybe(DECAY), "for SGD the batch follows it; None: the recipe's"),
    Field(
        "plan.momentum_rise_epochs",
        0.0,
        NOT_NEGATIVE,
        "epochs of a linear rise to plan.momentum; 0: it holds from the start",
    ),
    Field("plan.exponent", None, maybe(number(0, 1)), "p in lr ~ batch^p; None: the optimizer's"),
    Field(
        "plan.batches",
        "",
        TEXT,
        'for "ramp": "EXAMPLE:BATCH ..." or "START INCREMENT EXAMPLES"; unlike in the function '
        "ramp(), the learning rate follows by default",
    ),
    Field(
        "plan.ladder", 2.0, number(1.01, infinite=True), "growth factor where the curve is smooth"
    ),
    Field("plan.num_growths", 1, whole(0), 'growths of "hybrid" before the learning rate decays'),
    Field("plan.factor", 1.0, POSITIVE, 'batch of "follow": at most this times the noise'),
    Field("plan.decide_every_epochs", 0.1, POSITIVE, 'epochs between two decisions of "follow"'),
    Field(
        "plan.batch_multiple", None, maybe(whole(1, 2**31)), "divides each batch; None: ghost batch"
    ),
    Field("noise.share", None, maybe(number(above=0, most=1)), "share of examples also measured"),
    Field("noise.piece_size", None, maybe(whole(1, 2**31)), "examples; None: the ghost batch"),
    Field("noise.num_pieces", 8, whole(2, 2**20), "pieces of one measurement"),
    Field("noise.horizon_epochs", 1.0, POSITIVE, "time constant of the averages"),
    Field("noise.by_layer", False, FLAG, "measure the noise of each layer too"),
    Field("trace.per_decade", None, maybe(whole(1, 100)), "rows per tenfold updates; None: none"),
    Field("log_every_epochs", 1.0, POSITIVE, "epochs between two rows of metrics.jsonl"),
    Field("evaluate_every_epochs", 1.0, POSITIVE, "epochs between two evaluations"),
    Field("run.data_dir", "", TEXT, 'folder of tensorflow_datasets; "": $TFDS_DATA_DIR'),
    Field("run.num_devices", None, maybe(whole(1, 2**20)), "number of devices; None: all"),
    Field("run.input", "resident", one_of(*INPUTS), '"resident": devices hold the training set'),
    Field("run.num_workers", 0, whole(0, 4096), "processes that decode images; 0: a thread"),
    Field("run.max_microbatch_size", None, maybe(whole(1, 2**31)), "per device; None: by memory"),
    Field(
        "run.updates_per_dispatch",
        None,
        maybe(whole(1, 4096)),
        "updates of one call; None: those of 2,048 examples, at most 16; 1 unless resident",
    ),
    Field(
        "run.eval_batch_size",
        1000,
        whole(1, 2**31),
        "on all devices together, rounded up; halved until it fits",
    ),
    Field("run.compile_ahead", True, FLAG, "compile the next batch size during training"),
    Field("run.compilation_cache_dir", "", TEXT, '"": JAX\'s own, else ~/.cache/batchgrow/xla'),
    Field(
        "run.cpu_kernels",
        "auto",
        one_of("auto", "xla", "onednn"),
        "XLA's kernels on CPUs; auto: long runs measure which are faster (docs/measurements.md)",
    ),
    Field("run.checkpoint_every_epochs", 5.0, POSITIVE, "epochs between two checkpoints"),
    Field(
        "run.keep_checkpoints", 2, whole(1, 10_000), "how many of the last; the best is kept too"
    ),
    Field("run.keep_traced", False, FLAG, "keep checkpoints of traced rows and of segment ends"),
    Field("run.stop_at_growth", False, FLAG, "exit before the next growth, for more devices"),
    Field("run.plan_warnings", True, FLAG, "whether to warn of batch sizes that have few updates"),
    Field("run.tensorboard", True, FLAG, "whether to write an event file"),
    Field("run.progress", True, FLAG, "whether to show progress"),
)
SECTIONS = ("task", "data", "model", "init", "optimizer", "recipe", "plan", "noise", "trace", "run")


def base_config() -> Any:
    """Returns a config with every field at its default. An experiment changes some of them.

    A field whose default is None takes values of its type.
    """
    config: Any = ConfigDict({section: ConfigDict() for section in SECTIONS})
    for field in FIELDS:
        section, _, name = field.name.rpartition(".")
        value = field.default if field.default is not None else placeholder(field.kind.type)
        (config[section] if section else config)[name] = value
    config.recipe.learning_rates = ConfigDict()  # initial, by optimizer
    return config


def defaults(config: Any) -> dict[str, Any]:
    """Returns the defaults of fields by their dotted names, for `Experiment.defaults`.

    A run folder that lacks such a field was made before the field existed. Its run is the same with
    the default, because a new field's default is what was done before. This does not hold for a
    field that a part of the user's own also reads, as that part may have another default. Left out
    are therefore the fields of the model, those of a task other than classification, and those of
    an optimizer or a curve named `module:function`.
    """
    recipe = config.recipe
    own = {
        "model": True,
        "task": config.task.name != "classification",
        "optimizer": ":" in config.optimizer.name,
        "recipe": ":" in f"{recipe.curve} {recipe.momentum_curve}",
    }
    return {
        field.name: field.default
        for field in FIELDS
        if not own.get(field.name.partition(".")[0], False)
    }


def holds_commas(name: str, value: Any) -> bool:
    """Returns whether a value of this field may hold commas where it is written as text.

    Args:
      name: the dotted name of the field.
      value: a value of it, for fields that are not declared here.
    """
    declared = [field.kind.holds_commas for field in FIELDS if field.name == name]
    return declared[0] if declared else isinstance(value, tuple | list)


def own_arguments(config: Any, section: str) -> list[str]:
    """The arguments of an optimizer or a curve of the user's own; "*" stands for any.

    The section that names it may have them as fields.

    Raises:
      ValueError: if it cannot be imported.
    """
    named = {"optimizer": ("name",), "recipe": ("curve", "momentum_curve")}.get(section, ())
    found = []
    for field in named:
        if ":" in config[section][field]:
            taker = find(config[section][field], {}, f"{section}.{field}")
            found += [*parameters(taker), *("*" if takes_any(taker) else "")]
    return found


def check(config: Any) -> None:
    """Checks every field of the config that is declared here, and that there are no others.

    The fields of a task and a model, and those of `own_arguments`, are not declared here.

    Raises:
      ValueError: for the first field that is missing or unknown, or has a value that is not
        allowed.
    """
    values = flatten(config.to_dict())
    for field in FIELDS:
        section, _, rest = field.name.partition(".")
        fields = config.get(section)
        if isinstance(fields, ConfigDict) and isinstance(fields.get(rest), ConfigDict):
            raise ValueError(f"{field.name} is a section; it must be {field.kind.description}")
        is_own = section == "task" and rest != "name"
        if is_own and values.get("task.name") != "classification":
            continue  # The fields of other tasks are their own.
        if field.name not in values:
            if section in ("task", "data", "model", "optimizer"):
                continue  # replaced by fields of the task's own
            raise ValueError(f"{field.name} is missing; start from the base config")
        _check(field.name, values[field.name], field.kind)
    known = [field.name for field in FIELDS]
    known += [f"recipe.learning_rates.{name}" for name in OPTIMIZERS]
    is_own_model = ":" in str(values.get("model.name"))  # whose fields may have any value
    for name, value in values.items():
        is_rate = name.startswith("recipe.learning_rates.")
        if is_rate:
            _check(name, value, POSITIVE)
        if name in known or name.startswith("task.") or (is_rate and ":" in name):
            continue
        if name.startswith("model."):
            if not is_own_model:
                _check_of_model(name, value)
            continue
        section, _, rest = name.partition(".")
        own = own_arguments(config, section)
        if rest.partition(".")[0] not in own and "*" not in own:
            fields = [*known, *(f"{section}.{argument}" for argument in own)]
            raise ValueError(f"{name}: no such config field{hint(name, fields)}")


def _check_of_model(name: str, value: Any) -> None:
    """Sizes and rates of a model: whole numbers are 1 or more, others are finite."""
    if name.endswith("dropout"):
        _check(name, value, DECAY)
    elif name.endswith("probability"):
        _check(name, value, SHARE)
    elif isinstance(value, tuple | list):
        for entry in value:
            _check_of_model(name, entry)
    elif isinstance(value, int) and not isinstance(value, bool):
        _check(name, value, whole(1, 10**7))
    elif isinstance(value, float):
        _check(name, value, number())


def _check(name: str, value: Any, kind: Kind) -> None:
    if kind.accepts(value):
        return
    if kind.choices and isinstance(value, str):
        raise ValueError(f"unknown {name} {value!r}; choose {kind.description}")
    raise ValueError(f"{name} {value!r} must be {kind.description}")
