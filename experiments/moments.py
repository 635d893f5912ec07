"""Moments of a run at which a fault can be injected."""

import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from batchgrow.data.datasets import ArrayDataset, Dataset
from batchgrow.experiment import Experiment
from batchgrow.plan import Point


class Moments:
    """Says when a run is where a fault can strike.

    Args:
      experiment: of one update in each dispatch.
      told: called with a moment ("at an update") and its number, from 1.
      workdir: the run folder.

    Attributes:
      experiment: the same one; its data sets see when they are read.
    """

    def __init__(self, experiment: Experiment, told: Callable[[str, int], None], workdir: str):
        self._told, self._folder = told, pathlib.Path(workdir)
        self._counts: dict[str, int] = {}
        self._cadence = experiment.cadence
        self._end = experiment.plan.end_examples
        train_data: Any = experiment.train_data
        self.experiment = dataclasses.replace(
            experiment,
            train_data=_Traced(
                train_data.arrays,
                train_data.facts,
                told=partial(self._tell, "in a compilation"),
            ),
            test_data=_Evaluated(experiment.test_data, self._evaluation),
        )

    def watch(self, point: Point, _: Any) -> bool:
        """After an update, its row and its evaluation; before its checkpoint."""
        if "at an update" not in self._counts and jax.process_index() == 0:
            self._folder.with_name(f"{self._folder.name}.resumed").write_text(
                str(point.start_examples)
            )
        if self._crosses(point, self._cadence.checkpoint):
            self._tell("in a checkpoint write")
        if point.end_examples == self._end:
            self._tell("in the last checkpoint write")
            path = self._folder / "checkpoints" / str(self._end)
            threading.Thread(target=self._wait_for, args=[path], daemon=True).start()
        following = point._replace(start_examples=point.end_examples)
        if self._crosses(following, self._cadence.log):
            self._tell("before a row")
        self._tell("at an update")
        return False

    def _crosses(self, point: Point, every: int) -> bool:
        return point.start_examples // every < point.end_examples // every

    def _evaluation(self) -> None:
        if "at an update" in self._counts:  # the processes compare examples at the start
            self._tell("in an evaluation")

    def _wait_for(self, path: pathlib.Path) -> None:
        while not path.exists():
            time.sleep(0.001)
        self._tell("before the summary")

    def _tell(self, moment: str) -> None:
        self._counts[moment] = self._counts.get(moment, 0) + 1
        self._told(moment, self._counts[moment])


@dataclass(frozen=True, eq=False)
class _Traced(ArrayDataset):
    """A training set that says when a program that takes examples from it is traced."""

    told: Callable[[], None] = field(kw_only=True)

    def take(self, arrays: Any, indices: Any) -> Any:
        if not isinstance(indices, np.ndarray):
            self.told()
        return super().take(arrays, indices)


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """A test set that says when it is read. It is not `InMemory`: each evaluation reads it."""

    data: Dataset
    told: Callable[[], None]

    @property
    def num_examples(self) -> int:
        return self.data.num_examples

    @property
    def example(self) -> Any:
        return self.data.example

    def gather(self, indices: np.ndarray) -> Any:
        self.told()
        return self.data.gather(indices)
