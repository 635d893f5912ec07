"""Commands, each `python -m experiments.NAME`."""

import os
import signal
import sys

# A command begins: Ctrl-C ends it without a word until training begins, JAX's imports included.
if sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
