"""The Trainer and Accelerate adapters against the real libraries."""

import contextlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from batchgrow import Recipe, Stream, curves, grow

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import TrainerCallback, TrainingArguments  # noqa: E402

from batchgrow.huggingface import PlanTrainer  # noqa: E402
from experiments.ports import free_port  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
N = 60
CURVE = curves.step(0.05, (2, 3), 0.5)
PLAN = grow(Recipe(6, 0.9, CURVE, num_examples=N, num_epochs=4), max_batch_size=24)


def make_data() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, 4, generator=generator)
    targets = inputs @ torch.randn(4, 1, generator=generator)
    return [{"x": inputs[i], "labels": targets[i], "number": i} for i in range(N)]


class Model(torch.nn.Module):
    """A linear model that remembers the numbers of the examples of each pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(4, 1)
        self.passes = []

    def forward(self, x, labels, number):
        self.passes.append(number.tolist())
        return {"loss": torch.nn.functional.mse_loss(self.linear(x), labels)}


class Recorder(TrainerCallback):
    """Learning rates and momenta with which the updates are made, and the passes of each."""

    def __init__(self):
        self.rates, self.updates = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        group = optimizer.param_groups[0]
        self.rates.append((group["lr"], group["momentum"]))
        self.updates.append(list(model.passes))
        model.passes.clear()


def make_trainer(folder, *, plan=PLAN, data=None, microbatch=5, **options) -> tuple:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        optim="sgd",
        optim_args="momentum=0.9",
        max_grad_norm=0.0,
        per_device_train_batch_size=microbatch,
        save_strategy="steps",
        logging_steps=1,
        seed=3,
        **options,
    )
    recorder = Recorder()
    trainer = PlanTrainer(
        Model(), arguments, train_dataset=data or make_data(), plan=plan, callbacks=[recorder]
    )
    return trainer, recorder


def expected_updates() -> list[list[int]]:
    stream = Stream(N, seed=3)
    return [stream.indices(list(point.positions)).tolist() for point in PLAN.points()]


def weights(trainer) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).numpy()


def test_trainer_follows_the_plan(tmp_path) -> None:
    trainer, recorder = make_trainer(tmp_path, save_steps=1000)
    trainer.train()
    assert [sum(passes, []) for passes in recorder.updates] == expected_updates()
    sizes = {len(part) for passes in recorder.updates for part in passes}
    assert sizes == {3, 4} and max(map(len, recorder.updates)) == 6
    assert recorder.rates == [(p.learning_rate, p.momentum) for p in PLAN.points()]
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["examples_seen"] for row in logged] == [p.end_examples for p in PLAN.points()]
    assert [row["batch_size"] for row in logged] == [p.batch_size for p in PLAN.points()]
    assert trainer.state.global_step == PLAN.num_updates


@pytest.mark.slow
def test_micro_batches_do_not_change_training(tmp_path) -> None:
    whole, _ = make_trainer(tmp_path / "whole", microbatch=100, save_steps=1000)
    cut, _ = make_trainer(tmp_path / "cut", microbatch=1, save_steps=1000)
    whole.train(), cut.train()
    np.testing.assert_allclose(weights(cut), weights(whole), rtol=1e-5)
    losses = [
        [row["loss"] for row in trainer.state.log_history if "loss" in row]
        for trainer in (whole, cut)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "stop",
    [
        PLAN.segments[0].num_updates,
        *(pytest.param(stop, marks=pytest.mark.slow) for stop in (13, 24)),
    ],
)
def test_resume_in_the_middle_of_a_ramp(tmp_path, stop: int) -> None:
    """Inside a segment, at a growth, and after one."""
    whole, record = make_trainer(tmp_path / "whole", save_steps=1000)
    whole.train()
    saved, _ = make_trainer(tmp_path / "cut", save_steps=stop)
    saved.train()
    resumed, rest = make_trainer(tmp_path / "cut", save_steps=1000)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"cut/checkpoint-{stop}"))
    assert rest.updates == record.updates[stop:]
    assert rest.rates == record.rates[stop:]
    np.testing.assert_array_equal(weights(resumed), weights(whole))


def test_errors(tmp_path) -> None:
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2 must be 1"):
        make_trainer(tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="ignore_data_skip=True"):
        make_trainer(tmp_path, ignore_data_skip=True)
    model = Model()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(sgd)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="a scheduler of the learning rate, which the plan sets"):
        PlanTrainer(model, arguments, plan=PLAN, optimizers=(sgd, scheduler))
    trainer, _ = make_trainer(tmp_path, data=make_data()[:50])
    with pytest.raises(ValueError, match="made for num_examples=60, but the data set has 50"):
        trainer.train()


def test_accelerate() -> None:
    """The loop of docs/huggingface.md."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from batchgrow.torch import PlanBatchSampler, PlanLR

    accelerator, data = Accelerator(cpu=True), make_data()
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = PlanLR(optimizer, PLAN)
    sampler = PlanBatchSampler(
        PLAN,
        data,
        seed=3,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_batch_size=5,
    )
    rates = []
    for step, batch in sampler.steps(DataLoader(data, batch_sampler=sampler)):
        with contextlib.nullcontext() if step.ends_update else accelerator.no_sync(model):
            accelerator.backward(model(**batch)["loss"] / step.num_microbatches)
        if step.ends_update:
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    assert rates == [point.learning_rate for point in PLAN.points()]
    assert sum(model.passes, []) == sum(expected_updates(), [])


TWO = """
import sys
sys.path.insert(0, "tests")
import numpy as np
import torch.distributed
from test_huggingface import make_trainer, weights
trainer, recorder = make_trainer(sys.argv[1], microbatch=3, save_steps=1000, ddp_backend="gloo")
assert trainer.args.world_size == 2
trainer.train()
np.savez(
    f"{sys.argv[1]}/{trainer.args.process_index}.npz",
    weights=weights(trainer),
    examples=np.array([n for passes in recorder.updates for part in passes for n in part]),
)
# A process whose gloo threads still run at its end is now and then aborted by PyTorch.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path) -> None:
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path)],
            cwd=ROOT,
            env=os.environ
            | world
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, _ = make_trainer(tmp_path / "one", save_steps=1000)
    one.train()
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    for rank in found:
        np.testing.assert_allclose(rank["weights"], weights(one), rtol=1e-5)
    read = np.concatenate([rank["examples"] for rank in found])
    assert sorted(read.tolist()) == sorted(sum(expected_updates(), []))
