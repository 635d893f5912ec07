"""Learning rate and batch in a constant ratio: alike until the step is too large."""

from collections.abc import Sequence

from experiments.lab.setups import small_cifar10
from experiments.lab.study import Arm, Study, Trial, Verdict, chart, line, number, values_of

RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # of the paper's scale; ours are a quarter
BATCH_OF_RATE = 1280  # batch 128 at rate 0.1, in the paper's scale
TOLERANCE = 1.1  # a loss that is this much larger is called another one


def config():
    made = small_cifar10(10_000)
    made.ghost_batch_size = 16
    made.recipe.num_epochs = 5.0
    return made


def arms() -> list[Arm]:
    return [
        Arm(
            {"rate": rate},
            {
                "recipe.learning_rate": rate / 4,
                "recipe.batch_size": round(BATCH_OF_RATE * rate / 4),
            },
        )
        for rate in RATES
    ]


def judge(trials: Sequence[Trial]) -> Verdict:
    charts = [
        chart(
            f"{part.capitalize()} loss at one noise scale",
            "rate",
            f"{part}_loss",
            [line(trials, f"{part} loss", "rate", f"{part}_loss")],
        )
        for part in ("train", "test")
    ]
    numbers = [
        number(
            f"training loss at rate {rate:g}", values_of(trials, "train_loss", rate=rate).values()
        )
        for rate in RATES
    ]
    least = min(n.ours for n in numbers if n.ours is not None)
    alike = [
        r for r, n in zip(RATES, numbers, strict=True) if n.ours and n.ours <= TOLERANCE * least
    ]
    breaks = [rate for rate in RATES if rate > max(alike)]
    where = f"it is larger from rate {breaks[0]:g} on" if breaks else "no rate is too large"
    batches = [f"{BATCH_OF_RATE / 4 * rate:g}" for rate in (min(alike), max(alike))]
    return Verdict(
        numbers,
        charts,
        f"At one noise scale the training loss of the last epoch is within {TOLERANCE - 1:.0%} of "
        f"the lowest from rate {min(alike):g} to {max(alike):g} (batches {' to '.join(batches)}); "
        f"{where}.",
    )


STUDY = Study(
    claim="The loss depends on the noise scale lr N / (B (1 - m)) alone, until the step is too "
    "large.",
    source="Smith et al. 2018, Section 2; their Appendix B, where accuracy falls above rates of "
    "about 0.4, is unverified",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="10,000 examples of CIFAR-10, two convolutions of 8 and 16 channels with ghosts of 16, 5 "
    "epochs, momentum 0.9. Rates are in the paper's scale: ours and our batches are "
    "a quarter.",
)
