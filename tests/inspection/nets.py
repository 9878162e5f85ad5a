"""A small network with a residual block and a squeeze-excite gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxquant


class SmallNet(nn.Module):
    """conv - residual block - gate - pool - linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.left(x))
        x = x * self.gate(x)
        return self.head(x.mean((2, 3)))


def small_net() -> tuple[nn.Module, Tensor]:
    """The network with fixed weights, and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallNet().eval(), torch.randn(6, 3, 12, 12)


def quantized_net(config: fxquant.Config = fxquant.W8A8) -> fxquant.Quantized:
    """The network quantized on its inputs."""
    model, x = small_net()
    return fxquant.quantize(model, [x], config=config, progress=False)
