"""Strengths of interactions from weights, and the analysis of variance beside them."""

from itertools import combinations

import numpy as np
import pytest

from experiments.lab.functions import FUNCTIONS, NUM_INPUTS, examples
from experiments.lab.interactions import anova_strengths, pairwise_strengths, ranking_auc

RNG = np.random.default_rng(0)


def test_strengths_by_hand():
    first = np.array([[1.0, -2.0], [3.0, 0.5], [0.0, -1.0]])
    second, last = np.array([[1.0, -1.0], [2.0, 0.0]]), np.array([[-1.0], [4.0]])
    influence = np.array([1 * 1 + 1 * 4, 2 * 1 + 0 * 4])
    found = pairwise_strengths([first, second, last])
    assert found[0, 1] == found[1, 0] == 1 * influence[0] + 0.5 * influence[1]
    assert found[0, 2] == 0 * influence[0] + 1 * influence[1]
    assert found[1, 2] == 0.5 * influence[1]


def test_auc_counts_ordered_pairs():
    strengths = np.zeros((3, 3))
    strengths[0, 1], strengths[0, 2], strengths[1, 2] = 2, 1, 2
    assert ranking_auc(strengths, {(0, 1)}) == 0.75
    assert ranking_auc(-strengths, {(0, 2)}) == 1.0


def test_anova_is_the_t_of_a_linear_model():
    """For one pair, against the textbook's formula by projection."""
    x = RNG.normal(size=(200, 2))
    y = 1 + x[:, 0] + 0.3 * x[:, 0] * x[:, 1] + 0.1 * RNG.normal(size=200)
    others = np.column_stack([np.ones(200), x])
    product = x[:, 0] * x[:, 1]

    def residual(v):
        return v - others @ np.linalg.lstsq(others, v, rcond=None)[0]

    p, r = residual(product), residual(y)
    slope = p @ r / (p @ p)
    error = np.sqrt(np.square(r - slope * p).sum() / (200 - 4) / (p @ p))
    assert anova_strengths(x, y)[0, 1] == pytest.approx(slope / error)


@pytest.mark.parametrize("index", range(1, len(FUNCTIONS) + 1))
def test_the_stated_pairs_are_those_that_interact(index):
    """f(a, b) - f(a, b') - f(a', b) + f(a', b') is zero wherever two inputs do not interact."""
    of, pairs = FUNCTIONS[index - 1].of, FUNCTIONS[index - 1].pairs
    x, other = RNG.uniform(-1, 1, (2, 500, NUM_INPUTS))
    for a, b in combinations(range(NUM_INPUTS), 2):
        places = {}
        for moved in ((), (a,), (b,), (a, b)):
            columns = x.copy()
            columns[:, list(moved)] = other[:, list(moved)]
            places[moved] = of(*columns.T)
        mixed = places[()] - places[(a,)] - places[(b,)] + places[(a, b)]
        assert (np.abs(mixed).max() > 1e-3) == ((a, b) in pairs), (a, b)


def test_examples_are_drawn_once_and_parts_differ():
    first, again, test = (examples(split) for split in ("train:2", "train:2", "test:2"))
    np.testing.assert_array_equal(first["x"], again["x"])
    assert first["y"].shape == (10_000, 1) and test["x"].shape == (2_000, NUM_INPUTS)
    assert not np.array_equal(first["x"][:2_000], test["x"])
