"""The wide residual network in plain PyTorch, for comparisons of speed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """BN-ReLU-conv twice, as `batchgrow.models.wide_resnet`."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            if channels_in != channels or stride != 1
            else None
        )

    def forward(self, x: Any) -> Any:
        y = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = F.relu(self.norm2(self.conv1(y)), inplace=True)
        return shortcut + self.conv2(y)


def wide_resnet(depth: int, width: int) -> nn.Module:
    """WRN-depth-width for 10 classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    channels_in = 16
    for group, base in enumerate((16, 32, 64)):
        for block in range((depth - 4) // 6):
            stride = 2 if group > 0 and block == 0 else 1
            layers.append(Block(channels_in, base * width, stride))
            channels_in = base * width
    head = [nn.BatchNorm2d(channels_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(channels_in, 10))


def torch_updates(
    depth: int, width: int, batch_size: int, dtype: str, num_updates: int, device: str
) -> Callable[[], None]:
    """Eager updates on a fixed batch, channels last; returns when the device is done with all."""
    torch.backends.cudnn.benchmark = True
    model = wide_resnet(depth, width).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,), device=device)

    def call() -> None:
        for _ in range(num_updates):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def about(device: str) -> str:
    """Version, device and threads, for a benchmark's notes."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"PyTorch {torch.__version__}, {name}, {torch.get_num_threads()} threads"
