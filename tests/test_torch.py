"""The PyTorch adapter: the order of examples, ranks, micro-batches, learning rate, resume."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from batchgrow import Recipe, Stream, curves, grow

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset, TensorDataset  # noqa: E402

from batchgrow.torch import PlanBatchSampler, PlanLR  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
N = 60
CURVE = curves.with_warmup(curves.step(0.1, (2, 3), 0.5), 1, 0.01)
RECIPE = Recipe(6, 0.9, CURVE, num_examples=N, num_epochs=4.5)
PLAN = grow(RECIPE, max_batch_size=24)  # 6, 12, 24


class WithWorker(Dataset):
    """Example i is i, with the process that read it."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return index, os.getpid()


def positions_of(plan) -> list[list[int]]:
    return [list(point.positions) for point in plan.points()]


def run(sampler: PlanBatchSampler, num_workers: int = 0):
    loader = DataLoader(range(N), batch_sampler=sampler, num_workers=num_workers)
    return [(step, batch.tolist()) for step, batch in sampler.steps(loader)]


def by_update(steps) -> list[list[int]]:
    """The examples of each update, those of its micro-batches together."""
    updates = [[]]
    for step, batch in steps:
        updates[-1] += batch
        if step.ends_update:
            updates.append([])
    assert updates.pop() == []
    return updates


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_loader_reads_the_stream_across_growths(num_workers: int) -> None:
    stream = Stream(N, seed=3)
    expected = [stream.indices(positions).tolist() for positions in positions_of(PLAN)]
    assert by_update(run(PlanBatchSampler(PLAN, range(N), seed=3), num_workers)) == expected


def test_workers_survive_growth() -> None:
    sampler = PlanBatchSampler(PLAN, WithWorker(), seed=0)
    workers = {size: set() for size in (6, 12, 24)}
    for step, (_, pids) in sampler.steps(
        DataLoader(WithWorker(), batch_sampler=sampler, num_workers=2)
    ):
        workers[step.point.batch_size] |= set(pids.tolist())
    assert workers[6] == workers[12] == workers[24]
    assert len(workers[6]) == 2 and os.getpid() not in workers[6]


def test_the_indices_are_those_of_the_jax_engine() -> None:
    """The engine's own feed sends the same examples for the positions of each update."""
    feed = pytest.importorskip("batchgrow.data.feed")
    from batchgrow.data.datasets import ArrayDataset

    streamed = feed.StreamedFeed(ArrayDataset({"x": np.arange(N)}), Stream(N, seed=5))
    ours = by_update(run(PlanBatchSampler(PLAN, N, seed=5, max_batch_size=3)))
    for positions, indices in zip(positions_of(PLAN), ours, strict=True):
        sent = streamed.batch(np.array(positions))
        assert np.asarray(sent["examples"]["x"]).tolist() == indices


def make_optimizer(kind: str = "sgd", lr: float = 0.3):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(2))]},
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr / 10},
    ]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def rates(optimizer, scheduler, num_updates: int) -> list[list[float]]:
    found = []
    for _ in range(num_updates):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_learning_rate_is_the_plans_at_every_update(kind: str) -> None:
    optimizer = make_optimizer(kind)
    found = rates(optimizer, PlanLR(optimizer, PLAN), PLAN.num_updates)
    planned = [point.learning_rate for point in PLAN.points()]
    assert [first for first, _ in found] == planned  # Bit for bit.
    np.testing.assert_allclose([second for _, second in found], np.array(planned) / 10, rtol=1e-12)


def test_learning_rate_stays_after_the_end() -> None:
    optimizer = make_optimizer()
    scheduler = PlanLR(optimizer, PLAN)
    rates(optimizer, scheduler, PLAN.num_updates + 3)
    assert scheduler.get_last_lr()[0] == list(PLAN.points())[-1].learning_rate
    assert scheduler.examples_seen == PLAN.end_examples


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("update", [0, 1, 20, 25, PLAN.num_updates])
def test_scheduler_resumes(update: int, optimizer_first: bool) -> None:
    optimizer = make_optimizer()
    scheduler = PlanLR(optimizer, PLAN)
    whole = rates(optimizer, scheduler, update)
    saved = optimizer.state_dict(), scheduler.state_dict()
    whole += rates(optimizer, scheduler, PLAN.num_updates - update)

    optimizer = make_optimizer()
    scheduler = PlanLR(optimizer, PLAN)
    loads = [(optimizer, saved[0]), (scheduler, saved[1])]
    for owner, state in loads if optimizer_first else loads[::-1]:
        owner.load_state_dict(state)
    starts = [point.start_examples for point in PLAN.points()] + [PLAN.end_examples]
    assert scheduler.examples_seen == starts[update]
    assert rates(optimizer, scheduler, PLAN.num_updates - update) == whole[update:]


def test_scheduler_starts_at_examples_seen() -> None:
    start = PLAN.segments[1].start_examples
    optimizer = make_optimizer()
    scheduler = PlanLR(optimizer, PLAN, examples_seen=start)
    left = [point.learning_rate for point in PLAN.points(start)]
    assert [first for first, _ in rates(optimizer, scheduler, len(left))] == left


def test_momentum_is_the_plans() -> None:
    plan = grow(RECIPE, momentum=0.95, max_batch_size=24)
    assert {point.momentum for point in plan.points()} == {0.95}
    with pytest.raises(ValueError, match=r"optimizer has momentum=0.9 .* the plan has 0.95"):
        PlanLR(make_optimizer(), plan)
    segments = (PLAN.segments[0], *(s._replace(momentum=0.95) for s in PLAN.segments[1:]))
    changing = type(PLAN)(RECIPE, segments)
    for kind, momentum in (("sgd", lambda g: g["momentum"]), ("adamw", lambda g: g["betas"][0])):
        optimizer = make_optimizer(kind)
        scheduler = PlanLR(optimizer, changing)
        for point in changing.points():
            assert {momentum(group) for group in optimizer.param_groups} == {point.momentum}
            optimizer.step()
            scheduler.step()


def train(max_batch_size: int | None, stop: int | None = None, state=None):
    """Trains a small network; returns its weights, and what a checkpoint holds."""
    torch.manual_seed(0)
    inputs = torch.randn(N, 4, dtype=torch.float64)
    targets = inputs @ torch.randn(4, 1, dtype=torch.float64)
    data = TensorDataset(inputs, targets)
    model = torch.nn.Linear(4, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = PlanLR(optimizer, PLAN)
    if state is not None:
        for owner, saved in zip((model, optimizer, scheduler), state, strict=True):
            owner.load_state_dict(saved)
    sampler = PlanBatchSampler(
        PLAN, data, seed=2, examples_seen=scheduler.examples_seen, max_batch_size=max_batch_size
    )
    for step, (x, y) in sampler.steps(DataLoader(data, batch_sampler=sampler)):
        if step.point.update == stop:
            break
        loss = torch.nn.functional.mse_loss(model(x), y) / step.num_microbatches
        loss.backward()
        if step.ends_update:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    return weights, (model.state_dict(), optimizer.state_dict(), scheduler.state_dict())


def test_accumulation_does_not_change_training() -> None:
    whole, _ = train(None)
    cut, _ = train(5)
    np.testing.assert_allclose(cut, whole, rtol=1e-12)


@pytest.mark.parametrize("stop", [7, 22, 28])
def test_a_resumed_run_ends_with_the_same_weights(stop: int) -> None:
    whole, _ = train(5)
    _, checkpoint = train(5, stop=stop)
    resumed, _ = train(5, state=checkpoint)
    np.testing.assert_array_equal(resumed, whole)


def without_a_default():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1}]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def test_errors_are_one_line() -> None:
    cases = [
        (lambda: PlanBatchSampler(PLAN, 50), "made for num_examples=60, but the data set has 50"),
        (lambda: PlanBatchSampler(PLAN, N, rank=2, world_size=2), "rank=2 must be .* world_size=2"),
        (
            lambda: PlanLR(without_a_default(), PLAN),
            "default lr is 0, so the lr of a parameter group",
        ),
        (lambda: PlanBatchSampler(RECIPE, N), "must be a batchgrow.FixedPlan, not a Recipe"),
    ]
    for make, message in cases:
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


DDP = """
import sys, torch, numpy as np
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, "tests")
from test_torch import N, PLAN
from torch.utils.data import DataLoader, TensorDataset
from batchgrow.torch import PlanBatchSampler, PlanLR

rank, path, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
torch.manual_seed(0)
inputs = torch.randn(N, 4, dtype=torch.float64)
targets = inputs @ torch.randn(4, 1, dtype=torch.float64)
data = TensorDataset(inputs, targets)
model = DistributedDataParallel(torch.nn.Linear(4, 1).double())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = PlanLR(optimizer, PLAN)
sampler = PlanBatchSampler(PLAN, data, seed=2, max_batch_size=3)
assert (sampler.batches.rank, sampler.batches.world_size) == (rank, 2)
for step, (x, y) in sampler.steps(DataLoader(data, batch_sampler=sampler)):
    loss = torch.nn.functional.mse_loss(model(x), y) / step.num_microbatches
    loss.backward()
    if step.ends_update:
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
if rank == 0:
    np.save(out, torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path) -> None:
    out = tmp_path / "weights.npy"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), str(tmp_path / "store"), str(out)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    np.testing.assert_allclose(np.load(out), train(None)[0], rtol=1e-12)
