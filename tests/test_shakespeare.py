"""The Shakespeare recipe is nanoGPT's, update for update."""

import math

import jax
import numpy as np
import pytest

from batchgrow.config import make_plan, make_task
from configs import shakespeare


def nanogpt_learning_rate(update):
    """`get_lr` of nanoGPT's train.py with the settings of its README's small run."""
    if update < 100:
        return 1e-3 * (update + 1) / 101
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (update - 100) / 1900)) * 9e-4


@pytest.mark.parametrize("text", ["", ",python_topics"])
def test_learning_rates_are_nanogpts(text):
    config = shakespeare.get_config("decaying_lr" + text)
    plan = make_plan(config, config.data.num_train_examples)
    points = list(plan.points())
    assert len(points) == 2000 and {point.batch_size for point in points} == {12}
    np.testing.assert_allclose(
        [point.learning_rate for point in points], list(map(nanogpt_learning_rate, range(2000)))
    )


def test_growth_plans_use_the_same_examples():
    for variant, factor in (("increasing_batch", 1.0), ("square_root", 0.5)):
        config = shakespeare.get_config(variant)
        plan = make_plan(config, config.data.num_train_examples)
        sizes = [segment.batch_size for segment in plan.segments]
        assert sizes == [12, 24, 48, 96]
        assert plan.end_examples == pytest.approx(24_000, abs=96)
        for segment in plan.segments[1:]:
            before, after = (plan.at(segment.start_examples + shift) for shift in (-1, 0))
            ratio = after.learning_rate / before.learning_rate
            assert ratio == pytest.approx(2**factor, rel=0.02)


def test_model_is_nanogpts():
    task = make_task(shakespeare.get_config("decaying_lr,python_topics"))
    tokens = {"tokens": np.zeros((1, 65), np.uint8)}
    variables = jax.eval_shape(task.init, jax.random.key(0), tokens)
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert size == 795_904 + 64 * 128 + (96 - 65) * 128  # with positions and 96 characters


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="unknown variant 'growing'; choose decaying_lr"):
        shakespeare.get_config("growing")
    with pytest.raises(ValueError, match="write 'python_topics' or nothing after the comma"):
        shakespeare.get_config("decaying_lr,topics")
