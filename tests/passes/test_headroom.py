"""Grids leave room: sums of operands that cancel, and values that padding puts in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.graphs import (
    check_per_operator,
    quantize_model,
    signal_to_noise,
)

X = torch.randn(6, 3, 9, 7, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_padding_value_is_representable(value: float) -> None:
    """The value that is padded in belongs to the range of the shared grid."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.ConstantPad2d(1, value), nn.Conv2d(4, 2, 3)
    ).eval()
    quantized = quantize_model(model, [X])
    with torch.no_grad():
        assert signal_to_noise(model(X), quantized.reference(X)) > 25


def cancelling(factor: float) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y + y * -factor)

    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0])
def test_operands_that_cancel(factor: float) -> None:
    """A sum much smaller than its operands: both are many times the result's range."""
    model = cancelling(factor)
    quantized = quantize_model(model, [X])
    check_per_operator(quantized, [X])
