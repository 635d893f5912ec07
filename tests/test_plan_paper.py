"""The plans of Smith, Kindermans, Ying & Le (ICLR 2018), as closed-form tables."""

import math

import pytest

from batchgrow.plan import FixedPlan, Recipe, decay, grow, hybrid
from batchgrow.plan.curves import step, with_warmup
from batchgrow.plan.descent import find_descent

# Sec. 5.1 and 5.2, 5.3, and 5.4 (which is that of Goyal et al. 2017).
CIFAR = Recipe(128, 0.9, step(0.1, (60, 120, 160), 0.2), num_examples=50_000, num_epochs=200)
IMAGENET = Recipe(8192, 0.9, step(3.0, (30, 60, 80), 0.1), num_examples=1_281_167, num_epochs=90)
GOYAL = Recipe(
    8192, 0.9, with_warmup(step(3.2, (30, 60, 80), 0.1), 5, 0.1), 1_281_167, num_epochs=90
)


@pytest.mark.parametrize(
    ("plan", "momentum", "batches_and_learning_rates", "num_updates"),
    [
        pytest.param(
            decay(CIFAR),
            0.9,
            [(128, 0.1), (128, 0.02), (128, 0.004), (128, 0.0008)],
            78_125,
            id="5.1-decaying",
        ),
        pytest.param(
            hybrid(CIFAR),
            0.9,
            [(128, 0.1), (640, 0.1), (640, 0.02), (640, 0.004)],
            34_375,
            id="5.1-hybrid",
        ),
        pytest.param(
            grow(CIFAR, max_batch_size=math.inf),
            0.9,
            [(128, 0.1), (640, 0.1), (3200, 0.1), (16_000, 0.1)],
            28_875,
            id="5.1-increasing",
        ),
        pytest.param(
            grow(CIFAR, max_batch_size=5120),
            0.9,
            [(128, 0.1), (640, 0.1), (3200, 0.1), (5120, 0.032)],
            29_141,
            id="5.2-increasing",
        ),
        pytest.param(
            grow(CIFAR, max_batch_size=5120, initial_multiple=5),
            0.9,
            [(640, 0.5), (3200, 0.5), (5120, 0.16), (5120, 0.032)],
            6_406,
            id="5.2-initial-learning-rate",
        ),
        pytest.param(
            grow(CIFAR, max_batch_size=5120, initial_multiple=5, momentum=0.98),
            0.98,
            [(3200, 0.5), (5120, 0.16), (5120, 0.032), (5120, 0.0064)],
            2_305,
            id="5.2-momentum",
        ),
        pytest.param(
            decay(IMAGENET),
            0.9,
            [(8192, 3.0), (8192, 0.3), (8192, 0.03), (8192, 0.003)],
            14_075,
            id="5.3a-decaying",
        ),
        pytest.param(
            grow(IMAGENET, max_batch_size=81_920),
            0.9,
            [(8192, 3.0), (81_920, 3.0), (81_920, 0.3), (81_920, 0.03)],
            5_630,
            id="5.3a-increasing",
        ),
        *(
            pytest.param(
                grow(IMAGENET, max_batch_size=65_536, momentum=momentum),
                momentum,
                [(first, 3.0), *((65_536, second / divisor) for divisor in (1, 10, 100))],
                num_updates,
                id=f"5.3b-momentum-{momentum}",
            )
            for momentum, first, second, num_updates in [
                (0.9, 8192, 2.4, 5_865),
                (0.95, 16_384, 1.2, 3_519),
                (0.975, 32_768, 0.6, 2_346),
            ]
        ),
        pytest.param(
            decay(GOYAL),
            0.9,
            [(8192, 3.2), (8192, 0.32), (8192, 0.032), (8192, 0.0032)],
            14_075,
            id="5.4-goyal",
        ),
        pytest.param(
            grow(GOYAL, max_batch_size=16_384),
            0.9,
            [(8192, 3.2), (16_384, 0.64), (16_384, 0.064), (16_384, 0.0064)],
            9_384,
            id="5.4-increasing",
        ),
        pytest.param(
            grow(GOYAL, max_batch_size=16_384, initial_multiple=2),
            0.9,
            [(16_384, 6.4), (16_384, 0.64), (16_384, 0.064), (16_384, 0.0064)],
            7_038,
            id="5.4-doubled",
        ),
    ],
)
def test_plans_of_the_paper(
    plan: FixedPlan,
    momentum: float,
    batches_and_learning_rates: list[tuple[int, float]],
    num_updates: int,
) -> None:
    assert len(plan.segments) == 4
    for segment, jump, (batch_size, learning_rate) in zip(
        plan.segments,
        (0, *find_descent(plan.recipe).jumps),
        batches_and_learning_rates,
        strict=True,
    ):
        assert (segment.batch_size, segment.momentum) == (batch_size, momentum)
        assert abs(segment.start_examples - jump) <= max(p.batch_size for p in plan.segments) / 2
        assert plan.at(segment.end_examples - 1).learning_rate == pytest.approx(learning_rate)
        if jump > 0:  # The first segment may begin with a warm-up.
            assert plan.at(segment.start_examples).learning_rate == pytest.approx(learning_rate)
    assert abs(plan.num_updates - num_updates) <= 2


def test_noise_scales_at_the_start_of_the_paper() -> None:
    """Sec. 5.2: four plans start at one noise scale; in the exact form they do so nearly."""
    plans = [
        grow(CIFAR, max_batch_size=5120, initial_multiple=multiple, momentum=momentum)
        for multiple, momentum in [(1, 0.9), (5, 0.9), (5, 0.98)]
    ]
    starts = [plan.at(0) for plan in plans]
    assert [start.noise_scale for start in starts] == pytest.approx([390.625] * 3)
    assert [start.noise_scale_exact for start in starts] == pytest.approx(
        [389.6, 385.6, 365.6], 1e-3
    )


def test_accumulation_time() -> None:
    plan = grow(CIFAR, max_batch_size=math.inf)
    times = [plan.at(segment.start_examples).accumulation_epochs for segment in plan.segments]
    assert times == pytest.approx([0.0256, 0.128, 0.64, 3.2])
    assert grow(CIFAR, momentum=0.98).at(0).accumulation_epochs == pytest.approx(0.64)


def test_exponent_one_half_is_seesaw() -> None:
    """Where the learning rate would be divided by a: divide by sqrt(a), multiply the batch by a."""
    recipe = Recipe(256, 0.9, step(0.1, (1, 2), 1 / 4), num_examples=100_000, num_epochs=3)
    plan = grow(recipe, exponent=0.5, max_batch_size=math.inf)
    points = [plan.at(segment.start_examples) for segment in plan.segments]
    assert [point.batch_size for point in points] == [256, 1024, 4096]
    assert [point.learning_rate for point in points] == pytest.approx([0.1, 0.05, 0.025])
