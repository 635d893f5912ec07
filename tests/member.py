"""One of several processes that train tiny.make_config: what tests/test_processes.py starts.

    python tests/member.py WORKDIR CHANGES_JSON --coordinator_address=HOST:PORT ...

Beside the run folder it writes `WORKDIR.PROCESS.updates`, a line with its examples for
each dispatch, and at its end `WORKDIR.PROCESS.reads`, the index of each training example it read.
"""

import json
import sys
from typing import Any

from absl import flags
from tiny import TinyNet, make_config

from batchgrow import models
from batchgrow import train as train_module
from batchgrow.data.sources import Images
from batchgrow.progress import Progress
from experiments import launch

workdir, changes = sys.argv[1], json.loads(sys.argv[2])
del sys.argv[1:3]


class CountedImages(Images):
    """Images that know who asked for which."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        reads.append(index)
        return super().__getitem__(index)


class NotedProgress(Progress):
    """Progress that an onlooker can follow."""

    def advance(self, examples: int) -> None:
        """Notes the position on disk."""
        super().advance(examples)
        with open(f"{beside()}.updates", "a") as file:
            print(examples, file=file)


def main() -> int:
    """Trains, as experiments.train does."""
    load_images = train_module.load_images
    train_module.load_images = lambda name, split, data_dir: CountedImages(
        **vars(load_images(name, split, data_dir))
    )
    train_module.Progress = NotedProgress
    models.MODELS["tiny"] = TinyNet
    try:
        return launch.run(make_config(changes), workdir)
    finally:
        with open(f"{beside()}.reads", "w") as file:
            json.dump(reads, file)


def beside() -> str:
    """The path and number of this process."""
    return f"{workdir}.{flags.FLAGS.process_id}"


reads: list[int] = []
if __name__ == "__main__":
    launch.launch(main)
