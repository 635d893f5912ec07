"""A PyTorch loop with a constant batch size, and with its growth plan: a network on the digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchgrow import FixedPlan, Recipe, curves, decay, grow
from batchgrow.torch import PlanBatchSampler, PlanLR

torch.set_num_threads(1)  # More threads slow down a network this small.
table, labels = load_digits(return_X_y=True)
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
inputs, targets = torch.tensor(table / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
N = 1437  # The rest is for testing.
train_data = TensorDataset(inputs[:N], targets[:N])


def fit(plan: FixedPlan) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = PlanLR(optimizer, plan)  # was: MultiStepLR(optimizer, [10, 15, 18], 0.25)
    sampler = PlanBatchSampler(plan, train_data, seed=0, max_batch_size=64)
    loader = DataLoader(train_data, batch_sampler=sampler)  # was: batch_size=16, shuffle=True
    for step, (x, y) in sampler.steps(loader):  # was: for epoch in range(20): for x, y in loader
        loss = loss_fn(model(x), y) / step.num_microbatches
        loss.backward()
        if step.ends_update:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    with torch.no_grad():
        outputs = model(inputs)
        train_loss = loss_fn(outputs[:N], targets[:N])
        accuracy = (outputs[N:].argmax(1) == targets[N:]).float().mean()
    return f"{plan.num_updates} updates, train loss {train_loss:.4f}, test accuracy {accuracy:.3f}"


if __name__ == "__main__":
    curve = curves.step(0.1, (10, 15, 18), 0.25)
    recipe = Recipe(16, 0.9, curve, num_examples=N, num_epochs=20)
    print("decay:", fit(decay(recipe)))
    print("grow: ", fit(grow(recipe, max_batch_size=256)))
