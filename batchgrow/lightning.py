"""Lightning: a data module that follows a plan.

    class Model(LightningModule):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            scheduler = {"scheduler": PlanLR(optimizer, plan), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    data = PlanData(plan, dataset, seed=0, max_batch_size=64)
    trainer = Trainer(**data.trainer_options())
    trainer.fit(model, datamodule=data, ckpt_path=...)

One Lightning epoch is one segment of the plan. Lightning counts micro-batches modulo
`accumulate_grad_batches` from the start of an epoch, so this number may change only there.
"""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from batchgrow.batches import PlanBatches
from batchgrow.data.stream import Stream
from batchgrow.plan.plan import FixedPlan


class PlanData(LightningDataModule):
    """The training data in the batches of a plan. Subclass it to add a `val_dataloader`.

    It also sets `accumulate_grad_batches` of the trainer for each segment.

    Args:
      plan: made for the length of `dataset`.
      dataset: a data set with indices.
      seed: determines the order of the examples, which is that of the JAX engine.
      max_batch_size: most examples of a micro-batch on one device. None: any number.
      loader_options: further arguments of the DataLoader, such as `num_workers` or `collate_fn`.

    Raises:
      TypeError, ValueError: as `batchgrow.batches.PlanBatches`.
    """

    def __init__(
        self,
        plan: FixedPlan,
        dataset: Any,
        *,
        seed: int = 0,
        max_batch_size: int | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__()
        self.plan = plan
        self._stream = Stream(len(dataset), seed)
        self._max_batch_size = max_batch_size
        self._sampler = _SegmentSampler(self._batches(rank=0, world_size=1))
        self._loader = _Loader(dataset, batch_sampler=self._sampler, **loader_options)

    def trainer_options(self) -> dict[str, Any]:
        """Returns the arguments that the `Trainer` must have."""
        return {
            "max_epochs": len(self.plan.segments),
            "reload_dataloaders_every_n_epochs": 1,
            "use_distributed_sampler": False,
        }

    def train_dataloader(self) -> DataLoader:
        """Returns the loader of the trainer's epoch, which is a segment of the plan.

        Raises:
          ValueError: if the trainer was not made with `trainer_options()`.
        """
        trainer: Any = self.trainer
        for name, value in self.trainer_options().items():
            found = (
                trainer._accelerator_connector.use_distributed_sampler
                if name == "use_distributed_sampler"
                else getattr(trainer, name)
            )
            if found != value:
                raise ValueError(f"the Trainer has {name}={found}, but the plan needs {value}")
        batches = self._batches(rank=trainer.global_rank, world_size=trainer.world_size)
        self._sampler.batches = batches
        segment = min(trainer.current_epoch, len(self.plan.segments) - 1)  # or the run is complete
        self._sampler.segment = segment
        self._sampler.updates_made = trainer.global_step
        batch_size = self.plan.segments[segment].batch_size
        trainer.accumulate_grad_batches = batches.num_microbatches(batch_size)
        return self._loader

    def _batches(self, rank: int, world_size: int) -> PlanBatches:
        return PlanBatches(
            self.plan,
            self._stream,
            rank=rank,
            world_size=world_size,
            max_batch_size=self._max_batch_size,
        )


class _SegmentSampler(Sampler[list[int]]):
    """Yields the micro-batches of one segment that follow the updates already made.

    Its length also counts those of the updates already made, as Lightning does on a resume.
    """

    def __init__(self, batches: PlanBatches) -> None:
        self.batches = batches
        self.segment = 0
        self.updates_made = 0

    def __iter__(self) -> Iterator[list[int]]:
        segments = self.batches.plan.segments
        segment = segments[self.segment]
        made = self.updates_made - sum(s.num_updates for s in segments[: self.segment])
        self.batches.examples_seen = segment.start_examples + max(0, made) * segment.batch_size
        for step, indices in self.batches:
            if step.point.segment != self.segment:
                break
            yield indices.tolist()

    def __len__(self) -> int:
        segment = self.batches.plan.segments[self.segment]
        return segment.num_updates * self.batches.num_microbatches(segment.batch_size)


class _Loader(DataLoader):
    """Shows Lightning that a resume within an epoch is exact. The sampler keeps the position."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
