"""Hugging Face Trainer: follow a plan.

    trainer = PlanTrainer(model, args, train_dataset=dataset, plan=plan)
    trainer.train(resume_from_checkpoint=...)

The Trainer sees one batch for each update, and `training_step` cuts it into micro-batches. What the
Trainer counts, saves and skips on resume then stays correct.

With Accelerate alone, use `batchgrow.torch` and do not pass the loader to `prepare`.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from batchgrow.plan.plan import FixedPlan
from batchgrow.torch import PlanBatchSampler, PlanLR

try:
    import datasets
except ImportError:  # Not needed by the Trainer.
    datasets = None


class PlanMixin:
    """Makes a `transformers.Trainer` follow a plan: `class MyTrainer(PlanMixin, Trainer)`.

    - The plan sets the batch size, the learning rate, the momentum and the length of the run.
      `max_steps`, `learning_rate`, `lr_scheduler_type` and the warm-up arguments are not used.
    - `per_device_train_batch_size` is the most examples of one pass on one device. Larger
      updates are accumulated.
    - The order of the examples is that of the JAX engine for `data_seed`, or else `seed`.
    - Logs have `examples_seen` and the `batch_size` of the last update too. "epoch" goes from 0 to
      1 over the run.

    Args:
      plan: made for the length of `train_dataset`.
      args, kwargs: the arguments of the Trainer.

    Raises:
      ValueError: if an argument of the Trainer contradicts the plan.
    """

    def __init__(self, *args: Any, plan: FixedPlan, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan = plan
        arguments: Any = self.args  # pyright: ignore
        if arguments.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={arguments.gradient_accumulation_steps} must be 1: "
                "the plan decides how many examples an update accumulates"
            )
        if arguments.ignore_data_skip:
            raise ValueError(
                "ignore_data_skip=True would start the data anew on resume: leave it False"
            )
        if not isinstance(getattr(self, "lr_scheduler", None), PlanLR | None):
            raise ValueError(
                "optimizers has a scheduler of the learning rate, which the plan sets; give None"
            )
        if getattr(self, "is_deepspeed_enabled", False):
            raise ValueError("DeepSpeed fixes the batch size: train without DeepSpeed")
        arguments.max_steps = plan.num_updates

    def get_train_dataloader(self) -> DataLoader:
        """Returns the loader of the whole run. A batch is this process's share of one update.

        Raises:
          ValueError: if the training set has no length.
        """
        trainer: Any = self
        args, dataset, collate = trainer.args, trainer.train_dataset, trainer.data_collator
        if not hasattr(dataset, "__len__"):
            raise ValueError("train_dataset has no length: a plan needs a data set with indices")
        if datasets is not None and isinstance(dataset, datasets.Dataset):
            dataset = trainer._remove_unused_columns(dataset, description="Training")
        else:
            collate = trainer._get_collator_with_removed_columns(collate, description="Training")
        sampler = PlanBatchSampler(
            self.plan,
            dataset,
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            world_size=args.world_size,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=functools.partial(
                seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index
            ),
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> PlanLR:
        """Returns the scheduler of the plan."""
        trainer: Any = self
        if trainer.lr_scheduler is None:
            trainer.lr_scheduler = PlanLR(optimizer or trainer.optimizer, self.plan)
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    def training_step(
        self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Sums the gradients of the micro-batches of one update, and returns its loss."""
        trainer: Any = self
        parts = list(_parts(inputs, trainer._train_batch_size))
        trainer.current_gradient_accumulation_steps = len(parts)
        losses = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with contextlib.nullcontext() if last else trainer.accelerator.no_sync(model=model):
                losses.append(super().training_step(model, part, num_items_in_batch))  # pyright: ignore
        return torch.stack(losses).sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the examples seen and the batch size."""
        examples_seen = self.lr_scheduler.examples_seen if self.lr_scheduler else 0  # pyright: ignore
        if examples_seen:
            batch_size = self.plan.at(examples_seen - 1).batch_size
            logs = logs | {"examples_seen": examples_seen, "batch_size": batch_size}
        super().log(logs, *args, **kwargs)  # pyright: ignore


class PlanTrainer(PlanMixin, Trainer):
    """A `transformers.Trainer` that follows a plan. See `PlanMixin`."""


def _parts(inputs: Mapping[str, Any], max_batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields the batch in the fewest parts of equal size of at most `max_batch_size` examples."""
    sizes = {len(x) for x in inputs.values() if isinstance(x, torch.Tensor) and x.ndim > 0}
    if len(sizes) != 1:
        raise ValueError(
            f"the tensors of a batch have lengths {sorted(sizes)}: they must agree, so that it can "
            "be cut into micro-batches"
        )
    (size,) = sizes
    count = next(n for n in range(-(-size // max_batch_size), size + 1) if size % n == 0)
    for start in range(0, size, size // count):
        part = slice(start, start + size // count)
        yield {
            name: x[part] if isinstance(x, torch.Tensor) and x.ndim > 0 else x
            for name, x in inputs.items()
        }
