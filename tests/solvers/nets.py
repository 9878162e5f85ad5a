"""Small networks and losses shared by the tests of learned solvers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.solvers import BiasCorrection, RoundToNearest
from tests.graphs import check_per_operator

NEAREST = (RoundToNearest(), BiasCorrection())
X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Residual(nn.Module):
    """Stem, a residual block, an inverted residual without addition, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.project = nn.Conv2d(16, 6, 1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.b(self.a(x).relu())).relu()
        x = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.head(x)


def residual() -> Residual:
    torch.manual_seed(2)
    model = Residual().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # keeps the size of the signal
            nn.init.kaiming_normal_(module.weight)
    return model


def error(quantized: fxquant.Quantized, model: nn.Module, x: Tensor = X) -> float:
    """Mean squared error of the network's result."""
    with torch.no_grad():
        return float((quantized(x) - model(x)).square().mean())


def check_integers(quantized: fxquant.Quantized, x: Tensor = X[:4]) -> None:
    """Every integer operator is within one code of its float function's."""
    assert check_per_operator(quantized, [x]) > 0
