"""SOCNN, a CNN and an LSTM of equal size on an asynchronous series, with the three plans."""

from collections.abc import Sequence
from typing import Any

from configs import series
from experiments.lab.setups import only_at_the_end
from experiments.lab.study import (
    Arm,
    Number,
    Study,
    Trial,
    Verdict,
    chart,
    line,
    number,
    paired,
    signed,
    values_of,
)

PLANS = ("decay", "hybrid", "grow")
AUXILIARY = (0.0, 0.01, 0.1)
SOURCES = (16, 64)
NUM_EPOCHS = 6.0
# Equal in parameters: 5,120, 5,009 and 4,996 with 16 sources, 6,656, 6,631 and 6,556 with 64.
NETWORKS: dict[str, dict[int, dict[str, Any]]] = {
    "socnn": {sources: {"model.name": "socnn"} for sources in SOURCES},
    "cnn": {
        sources: {"model.name": "experiments.lab.networks:SeriesCNN", "model.channels": channels}
        for sources, channels in zip(SOURCES, (16, 15), strict=True)
    },
    "lstm": {
        sources: {"model.name": "experiments.lab.networks:SeriesLSTM", "model.units": units}
        for sources, units in zip(SOURCES, (27, 19), strict=True)
    },
}


def config() -> Any:
    made = series.get_config()
    made.recipe.num_epochs = NUM_EPOCHS
    made.recipe.boundaries_epochs = tuple(part * NUM_EPOCHS for part in (0.4, 0.6, 0.8))
    only_at_the_end(made)
    return made


def arms() -> list[Arm]:
    def arm(network: str, sources: int, plan: str = "decay", auxiliary: float = 0.0) -> Arm:
        changes = NETWORKS[network][sources] | {
            "data.name": f"experiments.lab.asynchronous:sources{sources}",
            "plan.name": plan,
            "task.auxiliary_weight": auxiliary,
        }
        labels = {"network": network, "sources": sources, "plan": plan, "auxiliary": auxiliary}
        return Arm(labels, changes)

    return [
        *(arm(network, sources) for sources in SOURCES for network in NETWORKS),
        *(arm("socnn", 16, auxiliary=a) for a in AUXILIARY[1:]),
        *(arm(network, 16, plan) for plan in PLANS[1:] for network in NETWORKS),
    ]


def judge(trials: Sequence[Trial]) -> Verdict:
    def loss(**labels: Any) -> dict[int, float]:
        return values_of(trials, "test_loss", **labels)

    numbers = [number(f"test loss, {_words(arm)}", loss(**arm.labels).values()) for arm in arms()]
    against = {
        (network, sources): paired(
            f"{network} minus SOCNN, {sources} sources",
            loss(network="socnn", sources=sources, plan="decay", auxiliary=0.0),
            loss(network=network, sources=sources, plan="decay"),
        )
        for sources in SOURCES
        for network in ("cnn", "lstm")
    }
    helped = {
        weight: paired(
            f"auxiliary weight {weight} minus 0, 16 sources",
            *(loss(network="socnn", sources=16, plan="decay", auxiliary=a) for a in (0.0, weight)),
        )
        for weight in AUXILIARY[1:]
    }
    grown = {
        (plan, network): paired(
            f"{plan} minus decay, {network}, 16 sources",
            *(
                loss(network=network, sources=16, plan=name, auxiliary=0.0)
                for name in ("decay", plan)
            ),
        )
        for plan in PLANS[1:]
        for network in NETWORKS
    }
    by_plan = [
        line(trials, network, "plan", "test_loss", network=network, sources=16, auxiliary=0.0)
        for network in NETWORKS
    ]
    weights = [
        line(trials, "SOCNN", "auxiliary", "test_loss", network="socnn", sources=16, plan="decay")
    ]
    return Verdict(
        [*numbers, *against.values(), *helped.values(), *grown.values()],
        [
            chart("Test loss by plan, 16 sources", "plan", "test_loss", by_plan),
            chart("Test loss of SOCNN", "auxiliary", "test_loss", weights),
        ],
        f"{_verdict([*against.values()])}The test loss of the CNN and of the LSTM minus that of "
        f"SOCNN: {_all(against[n, 16] for n in ('cnn', 'lstm'))} with 16 sources, "
        f"{_all(against[n, 64] for n in ('cnn', 'lstm'))} with 64. The auxiliary weights "
        f"{AUXILIARY[1]} and {AUXILIARY[2]} change that of SOCNN by "
        f"{_all(helped.values())} with 16 sources. A growing batch instead of a falling rate "
        f"changes it by {_all(grown['grow', network] for network in NETWORKS)} for "
        f"{', '.join(NETWORKS)}, and the hybrid by "
        f"{_all(grown['hybrid', network] for network in NETWORKS)}.",
    )


def _verdict(against: Sequence[Number]) -> str:
    """A first sentence where every interval of a difference from SOCNN contains zero, else none."""
    ends = [(entry.low, entry.high) for entry in against]
    if all(low is not None and high is not None and low <= 0 <= high for low, high in ends):
        return "No difference between the three networks is shown. "
    return ""


def _words(arm: Arm) -> str:
    label = arm.labels
    weight = f", auxiliary {label['auxiliary']}" if label["network"] == "socnn" else ""
    return f"{label['network']}, {label['sources']} sources, {label['plan']}{weight}"


def _all(numbers: Any) -> str:
    return " and ".join(map(signed, numbers))


STUDY = Study(
    claim="On asynchronous series the significance-offset network predicts better than a CNN and "
    "an LSTM of equal size.",
    source="Binkowski, Marti & Donnat 2018, Section 5, artificial series; their errors were not "
    "checked",
    config=config,
    arms=arms(),
    seeds=3,
    judge=judge,
    note="10,000 generated observations, drawn once for each number of sources; losses are in "
    "variances of the signal. One size of each network, 6 epochs and three fixed halvings of the "
    "rate, where the paper searches a grid and lowers the rate when the validation loss stalls.",
)
