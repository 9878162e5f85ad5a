"""A tiny quantized network that has a layer of each kind with multiplications."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxquant


class Net(nn.Module):
    """Dense, depthwise and transposed convolution, a table, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        x = torch.relu(self.dense(x))
        x = torch.sigmoid(self.up(self.depthwise(x) + x))
        return self.linear(self.pool(x).flatten(1))


@pytest.fixture(scope="package")
def quantized() -> fxquant.Quantized:
    """The network, input `[1, 3, 8, 8]`."""
    torch.manual_seed(0)
    return fxquant.quantize(Net().eval(), [torch.randn(2, 3, 8, 8)], progress=False)
