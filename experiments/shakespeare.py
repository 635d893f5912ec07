"""Train a small language model by each plan, write a report and print a sample of text.

python -m experiments.shakespeare
"""

import os
import sys

import jax
from absl import flags

from batchgrow.config import ConfigDict
from batchgrow.data.prepared import is_prepared
from batchgrow.data.text import decode, encode, load_text
from batchgrow.run.checkpoints import positions_of
from batchgrow.run.variables import read_variables
from batchgrow.tasks.language import LanguageModel, sample
from configs import shakespeare
from experiments.launch import experiment_of, launch, run_cells
from experiments.result_files import report_on

_WORKDIR = flags.DEFINE_string("workdir", "runs/shakespeare", "Folder for runs and report.")
_SAMPLE = flags.DEFINE_integer("sample", 500, "Characters to write at the end.", lower_bound=0)


def main(_: list[str]) -> int:
    """Trains every variant, writes and prints the report, and prints a sample."""
    suffix, workdir = _text(), _WORKDIR.value
    configs = [shakespeare.get_config(name + suffix) for name in shakespeare.VARIANTS]
    folders = [os.path.join(workdir, name) if workdir else "" for name in shakespeare.VARIANTS]
    experiments = [experiment_of(config) for config in configs]
    status = run_cells(zip(experiments, folders, strict=True))
    if status:
        return status
    report_on(folders, workdir)
    if jax.process_index() == 0:
        print(f"\n{_write(configs[-1], folders[-1])}")
    return 0


def _text() -> str:
    """Which text to train on, as the end of a variant."""
    if flags.FLAGS.download or is_prepared("tiny_shakespeare", flags.FLAGS.data_dir or ""):
        return ""
    print(
        "tiny_shakespeare is not prepared in the data folder (see --data_dir); training on the "
        "help texts that ship with Python instead",
        file=sys.stderr,
    )
    return ",python_topics"


def _write(config: ConfigDict, workdir: str) -> str:
    """A text by the last model of a run, or why there is none."""
    if not positions_of(workdir):
        return f"no sample: {workdir} has no checkpoint"
    data, task = config.data, experiment_of(config).task
    vocabulary = load_text(data.name, data.train_split, config.run.data_dir).vocabulary
    assert isinstance(task, LanguageModel)
    tokens = sample(
        task.model,
        read_variables(workdir),
        encode("\n", vocabulary),
        _SAMPLE.value,
        jax.random.key(config.seed),
        context=data.context,
    )
    return decode(tokens, vocabulary)


if __name__ == "__main__":
    launch(main)
