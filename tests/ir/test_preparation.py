"""Which nodes prepare an input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.ir.preparation import PREPARES_INPUT, prepares_input
from fxquant.passes.annotate import is_border


class Net(nn.Module):
    """Something with a constant for each channel, then a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.function(self.mean, x))


CASES = {
    "chain": (lambda m, x: (x - m) / (m + 1), ["sub", "truediv"]),
    "methods": (lambda m, x: x.sub(m).mul(other=m), ["sub", "mul"]),
    "reversed": (lambda m, x: m / (m - x), ["sub", "div"]),
    "number": (lambda m, x: 2 * x, []),
    "alpha": (lambda m, x: torch.sub(x, m, alpha=3), []),
    "behind another float operator": (lambda m, x: torch.sinh(x) - m, []),
    "two values": (lambda m, x: (x - m) * x.exp(), ["sub"]),
}


@pytest.mark.parametrize("name", CASES)
def test_preparation(name: str) -> None:
    function, expected = CASES[name]
    x = torch.rand(2, 3, 6, 6)
    quantized = fxquant.quantize(Net(function).eval(), [x], progress=False)
    nodes = quantized.calibrated.graph.nodes
    found = [getattr(n.target, "__name__", n.target) for n in nodes if prepares_input(n)]
    assert found == expected
    listed = {island.node for island in quantized.float_islands}
    assert not listed & {n.name for n in nodes if prepares_input(n)}


def test_preparation_is_at_the_border() -> None:
    assert is_border(PREPARES_INPUT) and not is_border("sinh has no integer form")
