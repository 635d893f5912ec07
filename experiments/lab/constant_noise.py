"""Learning rate and batch in a constant ratio: alike until the step is too large."""

from collections.abc import Sequence

from experiments.lab import fixed_rate
from experiments.lab.study import (
    Arm,
    Study,
    Trial,
    Verdict,
    chart,
    line,
    num_diverged,
    number,
    values_of,
)

RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
BATCH_OF_RATE = 640
TOLERANCE = 0.25  # of a loss


def arms(rates: Sequence[float], batch_of_rate: float, unit: float = 1.0) -> list[Arm]:
    """An arm for each rate, given in `unit`, with a batch in proportion to it."""
    return [
        Arm(
            {"rate": rate},
            {
                "recipe.learning_rate": rate * unit,
                "recipe.batch_size": round(batch_of_rate * rate * unit),
            },
        )
        for rate in rates
    ]


def judge(trials: Sequence[Trial]) -> Verdict:
    rates = list(dict.fromkeys(trial.labels["rate"] for trial in trials))
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
            f"{part} loss at rate {rate:g}", values_of(trials, f"{part}_loss", rate=rate).values()
        )
        for part in ("train", "test")
        for rate in rates
    ]
    tested = [entry.ours for entry in numbers[len(rates) :]]
    alike: dict[float, float] = {}
    breaks = "no rate is too large"
    for rate, loss in zip(rates, tested, strict=True):
        if loss is None or num_diverged(trials, "test_loss", rate=rate):
            breaks = f"at {rate:g} runs diverge"
            break
        if alike and loss > (1 + TOLERANCE) * alike[rates[0]]:
            breaks = f"at {rate:g} it is larger"
            break
        alike[rate] = loss
    if not alike:
        return Verdict(numbers, charts, f"Already {breaks}, so no rates can be compared.")
    largest, most = [*alike][-1], max(alike.values()) / alike[rates[0]]
    return Verdict(
        numbers,
        charts,
        f"At one noise scale the test loss is at most {most:.2f} times that of the smallest rate "
        f"up to a rate of {largest:g}, {largest / rates[0]:g} times as large; {breaks}.",
    )


STUDY = Study(
    claim="The loss depends on the noise scale lr N / (B (1 - m)) alone, until the step is too "
    "large.",
    source="Smith et al. 2018, Section 2; that accuracy falls above rates of about 0.4 in their "
    "Appendix B is unverified",
    config=fixed_rate.config,
    arms=arms(RATES, BATCH_OF_RATE),
    seeds=3,
    judge=judge,
    note="10,000 examples of MNIST, one hidden layer of 128 ReLUs, SGD without momentum, 10 epochs "
    "for every batch, from 16 to 2,048. These runs are also those of the scaled rate above. "
    f"A rate counts as too large if the test loss is more than {1 + TOLERANCE:g} times that of the "
    "smallest one. In the recorded runs the training loss at 0.4 is 23 % higher.",
)
