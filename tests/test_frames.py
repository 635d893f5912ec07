"""How deep the loss function is below the command that trains."""

import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

from batchgrow.tasks import Outputs
from batchgrow.tasks.classification import Classification

ROOT = pathlib.Path(__file__).parent.parent
OWN = (str(ROOT / "batchgrow"), str(ROOT / "experiments"))
MOST = 10  # own frames between the command and the loss function

CONFIG = """
import tiny

def get_config():
    task = {"task.name": "test_frames:Traced", "task.num_classes": 10}
    return tiny.make_config(task | {"recipe.num_epochs": 0.05, "recipe.boundaries_epochs": (0.04,)})
"""


class Traced(Classification):
    """Writes the own frames below it to $FRAMES, one list of "file:function" for each tracing."""

    def loss(self, variables: Any, examples: Any, keys: Any, *, train: bool) -> Outputs:
        if train:
            with open(os.environ["FRAMES"], "a") as file:
                print(json.dumps(own_frames()), file=file)
        return super().loss(variables, examples, keys, train=train)


def own_frames() -> list[str]:
    """Functions of batchgrow and experiments that are running: the main thread, then this one."""
    threads = dict.fromkeys([threading.main_thread().ident, threading.get_ident()])
    frames: list[str] = []
    for ident in threads:
        stack, frame = [], sys._current_frames()[ident or 0]
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(OWN):
                stack.append(f"{pathlib.Path(code.co_filename).name}:{code.co_name}")
            frame = frame.f_back
        frames += reversed(stack)
    return frames


def test_few_frames_from_the_command_to_the_loss(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    environment = {
        "FRAMES": str(tmp_path / "frames"),
        "PYTHONPATH": str(ROOT / "tests"),
    }
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    traced = [json.loads(line) for line in (tmp_path / "frames").read_text().splitlines()]
    assert traced
    for frames in traced:
        assert frames[0] == "train.py:<module>"
        assert frames[-1] == "step.py:loss_fn"  # what is differentiated
        between = frames[1:-1]
        assert len(between) <= MOST, between
