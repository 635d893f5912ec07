"""The Lightning adapter against the real library."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from batchgrow import Recipe, Stream, curves, grow

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from batchgrow.lightning import PlanData  # noqa: E402
from batchgrow.torch import PlanLR  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
N = 60
CURVE = curves.step(0.05, (2, 3), 0.5)
PLAN = grow(Recipe(6, 0.9, CURVE, num_examples=N, num_epochs=4), max_batch_size=24)


class Data(torch.utils.data.Dataset):
    def __init__(self, num_examples=N):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(num_examples, 4, generator=generator)
        self.targets = self.inputs @ torch.randn(4, 1, generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index], index, os.getpid()


class Model(lightning.LightningModule):
    """A linear model that records the passes and the learning rate of each update."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(4, 1)
        self.passes, self.updates, self.rates, self.workers = [], [], [], []

    def training_step(self, batch, batch_index):
        x, y, number, pids = batch
        self.passes.append(number.tolist())
        self.workers.append(set(pids.tolist()))
        return torch.nn.functional.mse_loss(self.linear(x), y)

    def on_before_optimizer_step(self, optimizer):
        self.updates.append(list(self.passes))
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.passes.clear()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = {"scheduler": PlanLR(optimizer, PLAN), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def fit(folder, *, microbatch=5, every=None, ckpt_path=None, options=None, **loader):
    model, data = Model(), PlanData(PLAN, Data(), seed=3, max_batch_size=microbatch, **loader)
    callbacks = []
    if every is not None:
        callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)]
    trainer = lightning.Trainer(
        **(data.trainer_options() | {"devices": 1} | (options or {})),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=every is not None,
        callbacks=callbacks,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model


def weights(model) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def expected_updates() -> list[list[int]]:
    stream = Stream(N, seed=3)
    return [stream.indices(list(point.positions)).tolist() for point in PLAN.points()]


def test_trainer_follows_the_plan(tmp_path) -> None:
    model = fit(tmp_path)
    assert [sum(passes, []) for passes in model.updates] == expected_updates()
    assert {len(part) for passes in model.updates for part in passes} == {3, 4}
    assert model.rates == [point.learning_rate for point in PLAN.points()]


def test_micro_batches_do_not_change_training(tmp_path) -> None:
    whole, cut = fit(tmp_path / "whole", microbatch=None), fit(tmp_path / "cut", microbatch=1)
    np.testing.assert_allclose(weights(cut), weights(whole), rtol=1e-5)


def test_workers_read_the_same_examples(tmp_path) -> None:
    model = fit(tmp_path, num_workers=2, persistent_workers=True)
    assert [sum(passes, []) for passes in model.updates] == expected_updates()
    assert len(set.union(*model.workers)) == 2  # The same from the first segment to the last.


@pytest.mark.parametrize("stop", [13, PLAN.segments[0].num_updates, 24])
def test_resume_in_the_middle_of_a_ramp(tmp_path, stop: int) -> None:
    """Inside a segment, at a growth, and after one."""
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "cut", every=stop)
    resumed = fit(tmp_path / "cut", ckpt_path=str(tmp_path / f"cut/step={stop}.ckpt"))
    assert resumed.updates == whole.updates[stop:]
    assert resumed.rates == whole.rates[stop:]
    np.testing.assert_array_equal(weights(resumed), weights(whole))


def test_a_finished_run_is_not_trained_again(tmp_path) -> None:
    whole = fit(tmp_path, every=PLAN.num_updates)
    again = fit(tmp_path, ckpt_path=str(tmp_path / f"step={PLAN.num_updates}.ckpt"))
    assert again.updates == []
    np.testing.assert_array_equal(weights(again), weights(whole))


def test_errors(tmp_path) -> None:
    with pytest.raises(ValueError, match="the Trainer has max_epochs=9, but the plan needs 3"):
        fit(tmp_path, options={"max_epochs": 9})
    with pytest.raises(ValueError, match="made for num_examples=60, but the data set has 50"):
        PlanData(PLAN, Data(50))


TWO = """
import sys
import numpy as np
from test_lightning import fit, weights
model = fit(sys.argv[1], microbatch=3, options={"devices": 2, "strategy": "ddp"})
np.savez(
    f"{sys.argv[1]}/{model.global_rank}.npz",
    weights=weights(model),
    examples=np.array([n for passes in model.updates for part in passes for n in part]),
)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path) -> None:
    program = tmp_path / "two.py"  # Lightning starts the file again for the second process.
    program.write_text(TWO)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one = fit(tmp_path)
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    for rank in found:
        np.testing.assert_allclose(rank["weights"], weights(one), rtol=1e-5)
    read = np.concatenate([rank["examples"] for rank in found])
    assert sorted(read.tolist()) == sorted(sum(expected_updates(), []))
