"""Models the tests name on the command line, `tests.cli.nets:tiny`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """conv - conv - pool - linear, on images of 8 by 8."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, 2, 1)
        self.body, self.head = nn.Conv2d(4, 6, 3, 1, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


class Odd(nn.Module):
    """Has a float island."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.flatten(1), 1)


class TwoInputs(nn.Module):
    """An image and a factor for each channel."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale[:, :, None, None]


def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval()


def wide() -> nn.Module:
    """Layers of which some are worth more bits than others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 1) for _ in range(4)), nn.Conv2d(8, 2, 1)]
    with torch.no_grad():
        for i, layer in enumerate(layers):  # of ever more equal channels
            layer.weight.lerp_(layer.weight[:1].clone(), 1 - 4.0**-i)
    return nn.Sequential(*layers).eval()


def grey() -> nn.Module:
    return Tiny(1).eval()


def broken() -> nn.Module:
    print("this goes to stderr")
    raise ValueError("no weights here")


def number() -> int:
    return 3
