"""The Hugging Face Trainer with a constant batch size, and with its growth plan: the digits."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import TrainingArguments

from batchgrow import FixedPlan, Recipe, curves, decay, grow
from batchgrow.huggingface import PlanTrainer

torch.set_num_threads(1)  # More threads slow down a network this small.
table, labels = load_digits(return_X_y=True)
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
inputs, targets = torch.tensor(table / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
N = 1437  # The rest is for testing.
train_data = [{"x": x, "labels": y} for x, y in zip(inputs[:N], targets[:N], strict=True)]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fit(plan: FixedPlan) -> str:
    torch.manual_seed(0)
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=64,  # What fits into memory; was: the batch size, 16.
            optim="sgd",
            optim_args="momentum=0.9",
            max_grad_norm=0,
            **{"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        )
        PlanTrainer(model, arguments, train_dataset=train_data, plan=plan).train()  # was: Trainer
    with torch.no_grad():
        train_loss = model(inputs[:N], targets[:N])["loss"]
        accuracy = (model(inputs, targets)["logits"][N:].argmax(1) == targets[N:]).float().mean()
    return f"{plan.num_updates} updates, train loss {train_loss:.4f}, test accuracy {accuracy:.3f}"


if __name__ == "__main__":
    curve = curves.step(0.1, (10, 15, 18), 0.25)
    recipe = Recipe(16, 0.9, curve, num_examples=N, num_epochs=20)
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=256)))
