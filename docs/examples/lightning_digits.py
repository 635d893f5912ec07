"""Lightning with a constant batch size, and with its growth plan: a network on the digits."""

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from batchgrow import FixedPlan, Recipe, curves, decay, grow
from batchgrow.lightning import PlanData
from batchgrow.torch import PlanLR

torch.set_num_threads(1)  # More threads slow down a network this small.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
table, labels = load_digits(return_X_y=True)
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
inputs, targets = torch.tensor(table / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
N = 1437  # The rest is for testing.
train_data = TensorDataset(inputs[:N], targets[:N])


class Model(LightningModule):
    def __init__(self, plan: FixedPlan):
        super().__init__()
        self.plan = plan
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_index):
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = PlanLR(optimizer, self.plan)  # was: MultiStepLR(optimizer, [10, 15, 18], 0.25)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fit(plan: FixedPlan) -> str:
    torch.manual_seed(0)
    model = Model(plan)
    data = PlanData(plan, train_data, seed=0, max_batch_size=64)  # was: a DataLoader
    quiet = {f"enable_{name}": False for name in ("progress_bar", "model_summary", "checkpointing")}
    trainer = Trainer(**data.trainer_options(), accelerator="cpu", logger=False, **quiet)
    trainer.fit(model, datamodule=data)
    with torch.no_grad():
        outputs = model.layers(inputs)
        train_loss = nn.functional.cross_entropy(outputs[:N], targets[:N])
        accuracy = (outputs[N:].argmax(1) == targets[N:]).float().mean()
    return f"{plan.num_updates} updates, train loss {train_loss:.4f}, test accuracy {accuracy:.3f}"


if __name__ == "__main__":
    curve = curves.step(0.1, (10, 15, 18), 0.25)
    recipe = Recipe(16, 0.9, curve, num_examples=N, num_epochs=20)
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=256)))
