"""PyTorch: a batch sampler and a learning-rate scheduler that follow a plan.

sampler = PlanBatchSampler(plan, dataset, seed=0)
loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)
scheduler = PlanLR(optimizer, plan)
for step, (inputs, targets) in sampler.steps(loader):
    loss = loss_fn(model(inputs), targets) / step.num_microbatches
    loss.backward()
    if step.ends_update:
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
"""

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import torch.distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler

from batchgrow.batches import PlanBatches, Step
from batchgrow.data.stream import Stream
from batchgrow.plan.plan import FixedPlan, Point

Batch = TypeVar("Batch")


class PlanBatchSampler(Sampler[list[int]]):
    """Yields the indices of each micro-batch of a plan, for the `batch_sampler` of a DataLoader.

    One DataLoader serves the whole run, so its workers stay when the batch grows. It visits the
    data set as often as the plan says: there are no epochs, and no `set_epoch`. The indices are
    those that the JAX engine uses for the same seed.

    Args:
      plan: gives the batch size of each update.
      data: the data set, its length, or a `batchgrow.Stream`.
      seed: determines the order of the examples, if `data` is not a `Stream`.
      examples_seen: where to begin, for example the `examples_seen` of a restored `PlanLR`.
      rank: number of this process. By default that of torch.distributed, or 0.
      world_size: number of processes. By default that of torch.distributed, or 1.
      max_batch_size: most examples of a micro-batch on one rank. A larger share of an update is cut
        into micro-batches of equal size, whose gradients must be averaged. None: never cut.

    Attributes:
      batches: the `batchgrow.batches.PlanBatches` behind this sampler.

    Raises:
      TypeError, ValueError: as `batchgrow.batches.PlanBatches`.
    """

    def __init__(
        self,
        plan: FixedPlan,
        data: Sized | int | Stream,
        *,
        seed: int = 0,
        examples_seen: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if world_size is None:
            world_size = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if not isinstance(data, Stream):
            data = Stream(data if isinstance(data, int) else len(data), seed)
        self.batches = PlanBatches(
            plan,
            data,
            examples_seen=examples_seen,
            rank=rank,
            world_size=world_size,
            max_batch_size=max_batch_size,
        )

    @property
    def examples_seen(self) -> int:
        """The position at which iteration starts. Set it to resume."""
        return self.batches.examples_seen

    @examples_seen.setter
    def examples_seen(self, examples_seen: int) -> None:
        self.batches.examples_seen = examples_seen

    def __iter__(self) -> Iterator[list[int]]:
        for _, indices in self.batches:
            yield indices.tolist()

    def __len__(self) -> int:
        return len(self.batches)

    def steps(self, loader: Iterable[Batch]) -> Iterator[tuple[Step, Batch]]:
        """Yields each batch of `loader`, which uses this sampler, with the step it belongs to."""
        yield from zip(self.batches.steps(), loader, strict=True)


class PlanLR(LRScheduler):
    """Sets the learning rate and the momentum of each update as the plan says.

    Call `step()` once after each update of the optimizer. A parameter group whose initial learning
    rate is r times the optimizer's default has r times the plan's learning rate. The momentum is
    `momentum` of a parameter group, or the first of its `betas`. After the last update both stay.

    `state_dict()` holds the examples seen. `load_state_dict` continues from there, and also sets
    the learning rate of the optimizer, so it may be called before or after the optimizer's own.

    Args:
      optimizer: its parameter groups are set. Its momentum must occur in the plan, unless the
        momentum of the plan changes during the run.
      plan: the learning rates and momenta.
      examples_seen: the position at which to begin, if no state is loaded.

    Raises:
      ValueError: if no update starts at `examples_seen`, if the plan does not have the momentum of
        the optimizer, or if parameter groups have rates of their own beside a default of 0.
    """

    def __init__(self, optimizer: Optimizer, plan: FixedPlan, examples_seen: int = 0) -> None:
        self._plan = plan
        update = self._update(examples_seen)
        for group in optimizer.param_groups:
            _check_momentum(group, plan)
            group.setdefault("initial_lr", group["lr"])
        self._default_lr = optimizer.defaults["lr"]
        if not self._default_lr and any(g["initial_lr"] for g in optimizer.param_groups):
            raise ValueError(
                "the optimizer's default lr is 0, so the lr of a parameter group is no multiple of "
                "it; give the optimizer an lr above 0"
            )
        super().__init__(optimizer, last_epoch=update - 1)  # Then makes one step.

    @property
    def examples_seen(self) -> int:
        """Examples that the updates so far have seen, on all ranks together."""
        point = self._point()
        return point.start_examples if point.update == self.last_epoch else point.end_examples

    def get_lr(self) -> list[Any]:
        """Returns the learning rate of the next update for each parameter group."""
        learning_rate = self._point().learning_rate
        return [
            learning_rate if lr == self._default_lr else learning_rate * (lr / self._default_lr)
            for lr in self.base_lrs
        ]

    def step(self, epoch: int | None = None) -> None:
        """Moves on to the next update."""
        super().step(epoch)
        self._set_momentum()

    def state_dict(self) -> dict[str, Any]:
        """Returns plain numbers, without the plan."""
        return {
            "examples_seen": self.examples_seen,
            "base_lrs": list(self.base_lrs),
            "last_epoch": self.last_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the position at which the state was saved.

        Raises:
          ValueError: if no update of this plan starts there.
        """
        self.base_lrs = list(state_dict["base_lrs"])
        self.last_epoch = self._update(state_dict["examples_seen"]) - 1
        self._step_count = 0  # As at the start, no update needs to precede this step.
        self.step()

    def _update(self, examples_seen: int) -> int:
        """Returns how many updates lead to `examples_seen`."""
        point = next(self._plan.points(examples_seen), None)
        return self._plan.num_updates if point is None else point.update

    def _point(self) -> Point:
        """Returns the next update, or the last one of the run."""
        return self._plan.point(min(self.last_epoch, self._plan.num_updates - 1))

    def _set_momentum(self) -> None:
        momentum = self._point().momentum
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum


def _check_momentum(group: dict[str, Any], plan: FixedPlan) -> None:
    found = group["betas"][0] if "betas" in group else group.get("momentum")
    planned = sorted({segment.momentum for segment in plan.segments})
    if found is not None and found not in planned and plan.momentum_curve is None:
        raise ValueError(
            f"the optimizer has momentum={float(found)} (for Adam: betas[0]), but the plan has "
            f"{', '.join(map(str, planned))}: give both the same momentum"
        )
