"""Averages of finished classifiers: of several runs, of the last checkpoints, of views of an image.

    python -m experiments.ensemble RUN [RUN ...]
    python -m experiments.ensemble RUN [RUN ...] --last=3     # and of its last three checkpoints
    python -m experiments.ensemble RUN --views=flip,crops_flips    # and of views (task.test_views)

Each RUN is a run folder with a checkpoint. The test set is that of the first run; the others must
have the same. The table has the accuracy and the cross entropy of each run's newest checkpoint;
with --last, those of the mean probabilities and of the mean weights of its last checkpoints; with
--views, those of the mean probabilities of views of each test image; and those of the mean
probabilities of all runs. Running statistics of batch norm are renewed for mean weights. Runs keep
checkpoints with --config.run.keep_checkpoints=3 and a small --config.run.checkpoint_every_epochs.
"""

import json
from collections.abc import Sequence

import numpy as np
from absl import flags

from batchgrow.report import read_run
from batchgrow.run import environment
from batchgrow.text_table import text_table
from experiments.lab import averages
from experiments.launch import launch

_LAST = flags.DEFINE_integer("last", 1, "How many of the last checkpoints of each run.", 1)
_VIEWS = flags.DEFINE_list("views", [], "Views of a test image to average: flip, crops_flips.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.", allow_override=True)


def main(folders: list[str]) -> int:
    """Scores the averages of the runs in `folders`."""
    if not folders:
        raise ValueError("give one run folder or several: RUN [RUN ...]")
    rows = scores_of(folders, _LAST.value, _VIEWS.value)
    if _JSON.value:
        result = {
            **environment.recorded(),
            "rows": [{"what": words, **found._asdict()} for words, found in rows.items()],
            "runs": [read_run(folder).summary for folder in folders],
        }
        print(json.dumps(result, indent=1))
        return 0
    cells = [[words, f"{row.accuracy:.4f}", f"{row.loss:.4f}"] for words, row in rows.items()]
    print(text_table([["", "accuracy", "loss"], *cells], left=True))
    return 0


def scores_of(
    folders: list[str], count: int = 1, views: Sequence[str] = ()
) -> dict[str, averages.Scores]:
    """Returns the rows of the table by their names.

    Args:
      folders: the run folders.
      count: how many of the last checkpoints of each.
      views: views of a test image, as `task.test_views` has them.

    Raises:
      ValueError: if a folder lacks checkpoints, is no classifier's, or has another test set; or
        for unknown views.
    """
    scores: dict[str, averages.Scores] = {}
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
        for kind in views:
            viewed = averages.with_views(experiment, kind)
            found[f"newest, views {kind}"] = averages.probabilities(viewed, several[-1])
        for name, probabilities in found.items():
            of_runs.setdefault(name, []).append(probabilities)
            scores[f"{folder}: {name}"] = averages.score(probabilities, labels)
    if len(folders) > 1 and labels is not None:
        for name, several in of_runs.items():
            words = f"mean probabilities of {len(folders)} runs: {name}"
            scores[words] = averages.score(np.mean(several, 0), labels)
    return scores


if __name__ == "__main__":
    launch(main, positional=True)
