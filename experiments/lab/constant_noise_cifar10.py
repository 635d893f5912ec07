"""`constant_noise` on CIFAR-10, with momentum and ghost batch norm."""

import dataclasses
from typing import Any

from experiments.lab import constant_noise
from experiments.lab.setups import small_cifar10

RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # in the paper's scale
BATCH_OF_RATE, UNIT = 1280, 0.25  # ours are a quarter of the paper's


def config() -> Any:
    made = small_cifar10(10_000)
    made.ghost_batch_size = 16
    made.recipe.num_epochs = 5.0
    return made


STUDY = dataclasses.replace(
    constant_noise.STUDY,
    config=config,
    arms=constant_noise.arms(RATES, BATCH_OF_RATE, UNIT),
    seeds=1,
    note="10,000 examples of CIFAR-10, two convolutions of 8 and 16 channels with ghosts of 16, 5 "
    "epochs, momentum 0.9, batches from 16 to 1,024. Rates are in the paper's scale: ours and our "
    "batches are a quarter. Five epochs do not reach a stationary loss, and the largest batches "
    "make few updates, so this is no test of the claim at its best.",
)
