"""The next value of an asynchronous series: SOCNN beside a CNN and an LSTM of equal size.

    python -m experiments.train --config=configs/series.py:VARIANT --workdir=DIR

    socnn    the significance-offset network (Binkowski, Marti & Donnat 2018)
    cnn      convolutions over time
    lstm     one LSTM

The data are 10,000 generated observations of one signal by 16 noisy sources, or by 64 with
--config.data.name=experiments.lab.asynchronous:sources64. A series of one's own, a table in the
order of time:

    --config.data.name=series:prices.csv --config.data.target=price --config.data.test_share=0.2 \
        --config.data.num_train_examples=None

Adam and a batch of 128 are the paper's, and so are a window of 60 rows and the auxiliary loss,
--config.task.auxiliary_weight=0, 0.01 or 0.1. The paper divides the rate by 10 when the validation
loss stalls; here it is halved at three fixed epochs, so that the batch can grow in its place.
"""

from ml_collections import ConfigDict

from batchgrow import config as library
from configs import base

VARIANTS = ("socnn", "cnn", "lstm")


def get_config(variant: str = "socnn") -> library.ConfigDict:
    """The recipe, and one of `VARIANTS`."""
    config: library.ConfigDict = base.get_config()
    config.name = "series"
    config.variant = variant

    config.data.name = "experiments.lab.asynchronous:sources16"
    config.data.num_train_examples = 7_940
    config.data.context = 60
    config.task = ConfigDict({"name": "regression", "auxiliary_weight": 0.0})
    config.model.outputs = 1
    config.ghost_batch_size = 128

    config.optimizer.name = "adam"
    config.recipe.batch_size = 128
    config.recipe.num_epochs = 20.0
    config.recipe.learning_rate = 0.001
    config.recipe.boundaries_epochs = (8.0, 12.0, 16.0)
    config.recipe.factor = 0.5
    config.plan.max_batch_size = 1024.0
    config.run.plan_warnings = False  # short segments are meant; experiments.plan warns

    match variant:
        case "socnn":
            config.model.name = "socnn"
            config.task.auxiliary_weight = 0.01
        case "cnn":
            config.model.name = "experiments.lab.networks:SeriesCNN"
        case "lstm":
            config.model.name = "experiments.lab.networks:SeriesLSTM"
        case _:
            raise ValueError(f"unknown variant {variant!r}; choose {', '.join(VARIANTS)}")
    return config
