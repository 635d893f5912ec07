"""Averages of finished classifiers: of several runs, and of the last checkpoints of each.

    python -m experiments.ensemble RUN [RUN ...]
    python -m experiments.ensemble RUN [RUN ...] --last=3     # and of its last three checkpoints

Each RUN is a run folder with a checkpoint. The test set is that of the first run; the others must
have the same. The table has the accuracy and the cross entropy of each run's newest checkpoint;
with --last, those of the mean probabilities and of the mean weights of its last checkpoints; and
those of the mean probabilities of all runs. Running statistics of batch norm are renewed for mean
weights. Runs keep checkpoints with --config.run.keep_checkpoints=3 and a small
--config.run.checkpoint_every_epochs.
"""

import numpy as np
from absl import flags

from batchgrow.text_table import text_table
from experiments.lab import averages
from experiments.launch import launch

_LAST = flags.DEFINE_integer("last", 1, "How many of the last checkpoints of each run.", 1)


def main(folders: list[str]) -> int:
    """Scores the averages of the runs in `folders`."""
    if not folders:
        raise ValueError("give one run folder or several: RUN [RUN ...]")
    print(text_table([["", "accuracy", "loss"], *rows_of(folders, _LAST.value)], left=True))
    return 0


def rows_of(folders: list[str], count: int) -> list[list[str]]:
    """Returns the rows of the table.

    Args:
      folders: the run folders.
      count: how many of the last checkpoints of each.

    Raises:
      ValueError: if a folder lacks checkpoints, is no classifier's, or has another test set.
    """
    rows: list[list[str]] = []
    of_runs: dict[str, list[np.ndarray]] = {}
    labels = None
    for folder in folders:
        experiment, several = averages.last(folder, count)
        own_labels = averages.labels_of(experiment)
        labels = own_labels if labels is None else labels
        if not np.array_equal(labels, own_labels):
            raise ValueError(f"{folder} has another test set than {folders[0]}; give one at a time")
        each = [averages.probabilities(experiment, variables) for variables in several]
        found = {"newest": each[-1]}
        if count > 1:
            mean = averages.mean_weights(experiment, several)
            found[f"mean probabilities of the last {count}"] = np.mean(each, 0)
            found[f"mean weights of the last {count}"] = averages.probabilities(experiment, mean)
        for name, probabilities in found.items():
            of_runs.setdefault(name, []).append(probabilities)
            rows.append(_row(f"{folder}: {name}", probabilities, labels))
    if len(folders) > 1 and labels is not None:
        for name, several in of_runs.items():
            words = f"mean probabilities of {len(folders)} runs: {name}"
            rows.append(_row(words, np.mean(several, 0), labels))
    return rows


def _row(name: str, probabilities: np.ndarray, labels: np.ndarray) -> list[str]:
    found = averages.score(probabilities, labels)
    return [name, f"{found.accuracy:.4f}", f"{found.loss:.4f}"]


if __name__ == "__main__":
    launch(main, positional=True)
