"""Ten functions of ten numbers whose interactions are known, in the manner of Tsang et al. (2018).

Two inputs interact where the function is not a sum of one part without the first and one part
without the second. Each function has such groups, and other inputs that only add, or do nothing.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

NUM_INPUTS = 10
COUNTS = {"train": 10_000, "test": 2_000}


class Function(NamedTuple):
    """A function of the columns of x `(examples, 10)`, uniform in -1..1.

    Attributes:
      words: what interacts.
      of: the function of the ten columns.
      groups: the inputs that interact with each other.
    """

    words: str
    of: Callable[..., np.ndarray]
    groups: tuple[tuple[int, ...], ...]

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """The pairs of inputs that interact, the smaller number first."""
        return {pair for group in self.groups for pair in combinations(sorted(group), 2)}


FUNCTIONS = (
    Function(
        "two products of two",
        lambda a, b, c, d, e, f, g, *_: a * b + c * d + e**2 + np.sin(2 * f) + g,
        ((0, 1), (2, 3)),
    ),
    Function(
        "a product of three",
        lambda a, b, c, d, e, f, *_: 2 * a * b * c + 2**d + np.abs(e) + f,
        ((0, 1, 2),),
    ),
    Function(
        "the sine of a sum, and a product",
        lambda a, b, c, d, e, f, g, *_: np.sin(2 * (a + b + c)) + d * e + f**3 + g,
        ((0, 1, 2), (3, 4)),
    ),
    Function(
        "the exponential of a distance, and a product",
        lambda a, b, c, d, e, f, *_: np.exp(np.abs(a - b)) + c * d - e**2 + f,
        ((0, 1), (2, 3)),
    ),
    Function(
        "a quotient, and a product of three",
        lambda a, b, c, d, e, f, *_: 2 * a / (0.5 + b**2) + 2 * c * d * e + np.cos(2 * f),
        ((0, 1), (2, 3, 4)),
    ),
    Function(
        "a maximum, and the root of a sum",
        lambda a, b, c, d, e, f, *_: 2 * np.maximum(a, b) + 2 * np.sqrt(np.abs(c + d)) + e + f**2,
        ((0, 1), (2, 3)),
    ),
    Function(
        "a switch, and a product with a saturated input",
        lambda a, b, c, d, e, f, *_: 2 * (a > 0) * b + c * np.tanh(3 * d) + np.exp(e) + f,
        ((0, 1), (2, 3)),
    ),
    Function(
        "the length of a vector of three, and a product",
        lambda a, b, c, d, e, f, *_: 3 * np.sqrt(a**2 + b**2 + c**2) + d * e + np.sin(3 * f),
        ((0, 1, 2), (3, 4)),
    ),
    Function(
        "a chain of products",
        lambda a, b, c, d, e, f, g, *_: a * b + b * c + c * d + d * e + f + g**2,
        ((0, 1), (1, 2), (2, 3), (3, 4)),
    ),
    Function(
        "a bell over four, a product, and the cosine of a product",
        lambda a, b, c, d, e, f, g, h, *_: (
            3 * np.exp(-((a + b + c + d) ** 2)) + e * f + 2 * np.cos(3 * g * h)
        ),
        ((0, 1, 2, 3), (4, 5), (6, 7)),
    ),
)


def examples(split: str) -> Mapping[str, np.ndarray]:
    """Returns "x" float32 `(examples, 10)` and "y" float32 `(examples, 1)`, without noise.

    Args:
      split: "train:NUMBER" or "test:NUMBER" with the number of the function, from 1 on.
    """
    part, _, index = split.partition(":")
    rng = np.random.default_rng([int(index), part == "train"])
    x = rng.uniform(-1, 1, (COUNTS[part], NUM_INPUTS))
    y = FUNCTIONS[int(index) - 1].of(*x.T)
    return {"x": x.astype(np.float32), "y": y[:, None].astype(np.float32)}
