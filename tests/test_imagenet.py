"""`experiments.imagenet` from generated JPEGs to a summary: it grows twice, and it learns."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import ensemble, make_fake_imagenet

# The smoke config in small: 240 pictures of ten classes at 32x32, 32 -> 64 -> 128 in 5 epochs.
SMALL = """
--config.data.num_train_examples=240
--config.data.num_test_examples=60
--config.data.image_size=32
--config.recipe.num_epochs=5
--config.recipe.batch_size=32
--config.recipe.boundaries_epochs=(3.0,4.0)
--config.plan.max_batch_size=128
--config.evaluate_every_epochs=5
--config.run.progress=False
""".split()


@pytest.mark.slow
def test_smoke_learns_through_two_growths(tmp_path: pathlib.Path) -> None:
    make_fake_imagenet.make(str(tmp_path / "data"), 240, 60, num_classes=10, seed=0)
    command = [sys.executable, "-m", "experiments.imagenet", f"--workdir={tmp_path}/run"]
    command += ["--config=configs/imagenet_resnet50.py:smoke", f"--data_dir={tmp_path}/data"]
    done = subprocess.run(
        [*command, *SMALL],
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # one device
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [segment["batch_size"] for segment in summary["segments"]] == [32, 64, 128]
    assert summary["num_replaced_records"] == 0
    assert summary["final"]["test_accuracy"] >= 0.4  # chance is 0.1
    assert summary["final"]["train_loss"] < 1.8  # ln 10 is 2.3
    scores = ensemble.scores_of([f"{tmp_path}/run"], views=["crops_flips"])
    newest, viewed = scores.values()
    assert newest.accuracy == pytest.approx(summary["final"]["test_accuracy"])
    assert newest.loss == pytest.approx(summary["final"]["test_loss"], rel=1e-4)
    assert viewed.accuracy >= 0.4 and viewed.loss != newest.loss
