"""The plans of Smith et al., Sections 5.1 and 5.2, with the paper's batches and rates."""

from collections.abc import Mapping, Sequence
from typing import Any

from configs import cifar10
from experiments.lab.study import Arm, Study, Trial, Verdict

TRIED: Mapping[str, Sequence[float]] = {
    "momentum": (0.05, 0.1, 0.2, 0.4),
    "adam": (0.0003, 0.001, 0.003, 0.01),
}
TUNING_EPOCHS = 4.0
RATES = {"momentum": 0.1, "adam": 0.001}  # the best of those tried
SECTION_5_1 = ("decaying_lr", "hybrid", "increasing_batch")
SECTION_5_2 = ("increasing_batch_5120", "increased_lr", "increased_momentum")


def config() -> Any:
    """A WRN-10-1 and all of CIFAR-10, batches from 128 to 16,000, 20 epochs."""
    made = cifar10.get_config("decaying_lr,tenth")
    made.run.num_devices = 1
    made.run.max_microbatch_size = 640
    return made


def arms() -> list[Arm]:
    def changes(optimizer: str, rate: float, plan: str) -> dict[str, Any]:
        names = ("name", "max_batch_size", "initial_multiple", "momentum")
        chosen = cifar10.get_config(plan).plan
        made = {"optimizer.name": optimizer, "recipe.learning_rate": rate}
        return made | {f"plan.{name}": chosen[name] for name in names}

    tuning = [
        Arm(
            {"optimizer": optimizer, "tried": rate},
            changes(optimizer, rate, "decaying_lr")
            | {
                "recipe.num_epochs": TUNING_EPOCHS,
                "recipe.boundaries_epochs": tuple(
                    part * TUNING_EPOCHS for part in (0.3, 0.6, 0.8)
                ),
            },
        )
        for optimizer, rates in TRIED.items()
        for rate in rates
    ]
    compared = [
        Arm({"optimizer": optimizer, "plan": plan}, changes(optimizer, rate, plan))
        for optimizer, rate in RATES.items()
        for plan in (*SECTION_5_1, *(SECTION_5_2 if optimizer == "momentum" else ()))
    ]
    return [*tuning, *compared]


def judge(trials: Sequence[Trial]) -> Verdict:
    return Verdict([], [], "")


STUDY = Study(
    claim="Increasing the batch size instead of decaying the learning rate reaches the same test "
    "accuracy after the same number of epochs, with fewer updates.",
    source="Smith et al. 2018, Sections 5.1 and 5.2",
    config=config,
    arms=arms(),
    seeds=1,
    judge=judge,
)
