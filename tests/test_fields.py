"""Every field of a config is declared once, and any odd value of it is one plain line."""

import importlib
import math
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import change

from batchgrow import names
from batchgrow.config import make_plan
from batchgrow.config.fields import FIELDS, base_config, check, defaults
from batchgrow.optimizer import make_optimizer, optimizer_by_batch

CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("__init__", "base")
)
NAMES = [field.name for field in FIELDS]
ODD = [
    *(None, True, "", "a:b", "x", (), (0,), ("a",), (math.nan,), [1.0], {}),
    *(0, -1, 1, 2, 17, 2**31, 2**63, 10**21, 10**30),
    *(0.0, -0.5, 0.5, 0.97, 1.0, 1.0000001, 1e-300, 1e300, math.inf, -math.inf, math.nan),
]


def odd_config(stem, name, value):
    config = importlib.import_module(f"configs.{stem}").get_config()
    return change(config, {name: value})


@pytest.mark.parametrize("stem", CONFIGS)
def test_shipped_configs_pass(stem):
    module = importlib.import_module(f"configs.{stem}")
    for variant in module.VARIANTS:
        check(module.get_config(variant))


def test_defaults_pass_their_own_checks():
    check(base_config())
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("function", [make_optimizer, optimizer_by_batch])
def test_optimizers_have_the_declared_defaults(function):
    """So that a folder without such a field was trained with its default."""
    declared = defaults(base_config())
    given = {f"optimizer.{name}": value for name, value in names.defaults(function).items()}
    shared = {name for name in given.keys() & declared.keys() if given[name] is not None}
    assert len(shared) > 5
    assert {name: given[name] for name in shared} == {name: declared[name] for name in shared}


def test_defaults_of_parts_of_the_users_own_are_not_known():
    config = base_config()
    known = defaults(config)
    assert {"task.augment", "optimizer.b2", "recipe.power", "run.progress"} <= known.keys()
    assert not any(name.startswith("model.") for name in known)
    config.task.name, config.optimizer.name, config.recipe.curve = "language", "a:b", "a:c"
    assert defaults(config) == {
        name: value
        for name, value in known.items()
        if name.partition(".")[0] not in ("task", "optimizer", "recipe")
    }


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CONFIGS), st.sampled_from(NAMES), st.sampled_from(ODD))
def test_any_value_of_any_field_is_accepted_or_one_line(stem, name, value):
    """It names the field; and what passes makes a plan or one line."""
    config = odd_config(stem, name, value)
    try:
        check(config)
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error)
        return
    try:
        make_plan(config, 1437)
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_probability_may_be_0_or_1():
    for value in (0, 0.0, 0.5, 1):
        check(odd_config("digits", "model.last_probability", value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.last_probability", 2),
        ("optimizer.b2", 2.0),
        ("optimizer.epsilon", -1.0),
        ("optimizer.trust_coefficient", -1.0),
        ("optimizer.weight_decay", math.nan),
        ("plan.ladder", 1.0000001),
        ("evaluate_every_epochs", math.inf),
        ("model.channels", 0),
        ("model.channels", -2),
        ("recipe.boundaries_epochs", ("a", "b")),
        ("recipe.boundaries_epochs", (math.nan,)),
        ("task.std", (math.nan,)),
        ("seed", 2**63),
        ("data.num_train_examples", 10**20),
        ("model.num_classes", 10**10),
        ("recipe.decay_rate", 1e300),
        ("recipe.batch_size", 10**21),
        ("run.updates_per_dispatch", 10**12),
    ],
)
def test_values_that_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name.replace('.', '[.]')} .* must be "):
        check(odd_config("digits", name, value))
