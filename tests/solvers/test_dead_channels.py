"""Layers whose weights are zero: batch norms with a gamma of 0 leave them, trained ones too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import solvers


class Block(nn.Module):
    """A residual block whose last batch norm starts at zero; it adds only what solvers correct."""

    def __init__(self, alive: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)
        nn.init.zeros_(self.norm.weight)
        self.norm.weight.data[:alive] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.norm(self.conv(x)) + x))


class Shift(solvers.LayerSolver):
    """A correction of one layer's bias, by many codes, and weights as they are."""

    def solve_layer(
        self, problem: solvers.LayerProblem, rng: torch.Generator
    ) -> solvers.LayerSolution:
        """See LayerSolver."""
        layer = problem.layer
        by = SHIFT if layer.node.name == "conv" else 0.0
        return solvers.LayerSolution(layer.start, layer.bias + by)


SHIFT = 0.25


@pytest.mark.parametrize("alive", [0, 6])
def test_a_corrected_bias_fits_the_accumulator(alive: int) -> None:
    """Scales follow the bias that a solver has found, not only the one it began with."""
    torch.manual_seed(0)
    model, x = Block(alive).eval(), torch.randn(8, 3, 10, 10)
    shift = solvers.RoundToNearest(), Shift()
    quantized = fxquant.quantize(model, [x], config=fxquant.W8A8, solver=shift)
    with torch.no_grad():
        model.norm.bias += SHIFT
        expected = model(x)
    assert (expected - quantized(x)).square().mean() < expected.square().mean() / 1000
    assert f"{8 - alive} channel(s) raised" in quantized.notes["conv"]


@pytest.mark.parametrize("solver", [solvers.GPTQ(), solvers.UWC()], ids=str)
def test_solvers_leave_them_usable(solver: solvers.Solver) -> None:
    torch.manual_seed(0)
    model, x = Block(0).eval(), torch.randn(8, 3, 10, 10)
    quantized = fxquant.quantize(model, [x], solver=(solvers.RoundToNearest(), solver))
    with torch.no_grad():
        expected = model(x)
    assert (expected - quantized(x)).square().mean() < expected.square().mean() / 100
