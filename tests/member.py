"""One of several processes that train tiny.make_config: what tests/test_processes.py starts.

    python tests/member.py WORKDIR CHANGES_JSON --coordinator_address=HOST:PORT ...

With $DISPATCHES and $SIGNAL set it sends itself that signal after so many dispatches.

Beside the run folder it leaves `WORKDIR.PROCESS.updates`, a line with its examples for each
dispatch, and `WORKDIR.PROCESS.reads`, a line with the index of each example as it is read.
"""

import json
import os
import signal
import sys
from typing import Any

from absl import flags
from tiny import TinyNet, make_config

from batchgrow import models
from batchgrow.data.sources import Images
from batchgrow.progress import Progress
from experiments import launch

workdir, changes = sys.argv[1], json.loads(sys.argv[2])
del sys.argv[1:3]
dispatches = 0
read, advance = Images.__getitem__, Progress.advance


launch.HEARTBEAT_SECONDS = 10


def main() -> int:
    """Trains, as experiments.train does."""
    models.MODELS["tiny"] = TinyNet
    Images.__getitem__ = _read
    Progress.advance = _advance
    return launch.run(make_config(changes), workdir)


def _read(self: Images, index: int) -> dict[str, Any]:
    _note("reads", index)
    return read(self, index)


def _advance(self: Progress, examples: int) -> None:
    global dispatches
    _note("updates", examples)
    advance(self, examples)
    dispatches += 1
    if str(dispatches) == os.environ.get("DISPATCHES"):
        os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])


def _note(what: str, value: int) -> None:
    with open(f"{workdir}.{flags.FLAGS.process_id}.{what}", "a") as file:
        print(value, file=file)


if __name__ == "__main__":
    launch.launch(main)
