"""One of several processes that train tiny.make_config: what tests/test_processes.py starts.

    python tests/member.py WORKDIR CHANGES_JSON --coordinator_address=HOST:PORT ...

With $DISPATCHES and $SIGNAL set it sends itself that signal after so many dispatches.

Beside the run folder it leaves `WORKDIR.PROCESS.updates`, a line with its examples for each
dispatch, `WORKDIR.PROCESS.reads`, a line with the index of each example of the digits as it is
read, and `WORKDIR.PROCESS.crops`, one with the stream position of each JPEG.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from absl import flags
from tiny import TinyNet, make_config

from batchgrow import models
from batchgrow.data import imagenet
from batchgrow.data.sources import Images
from batchgrow.run.progress import Progress
from experiments import launch

HEARTBEAT_SECONDS = 10


def main(workdir: str, changes: Mapping[str, Any]) -> int:
    """Trains, as experiments.train does, and takes notes."""
    models.MODELS["tiny"] = TinyNet
    read, advance, crop = Images.__getitem__, Progress.advance, imagenet.training_crop
    dispatches = 0

    def noted_read(self: Images, index: int) -> dict[str, Any]:
        note("reads", index)
        return read(self, index)

    def noted_crop(jpeg: bytes, position: int, *, seed: int) -> imagenet.Crop:
        note("crops", position)
        return crop(jpeg, position, seed=seed)

    def noted_advance(self: Progress, examples: int) -> None:
        nonlocal dispatches
        dispatches += 1
        note("updates", examples)
        advance(self, examples)
        if str(dispatches) == os.environ.get("DISPATCHES"):
            os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])

    def note(what: str, value: int) -> None:
        with open(f"{workdir}.{flags.FLAGS.process_id}.{what}", "a") as file:
            print(value, file=file)

    Images.__getitem__, Progress.advance = noted_read, noted_advance
    imagenet.training_crop = noted_crop
    return launch.run(make_config(changes), workdir)


if __name__ == "__main__":
    launch.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    arguments = sys.argv[1], json.loads(sys.argv[2])
    del sys.argv[1:3]
    launch.launch(partial(main, *arguments))
