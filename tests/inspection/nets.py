"""A small network with a residual block and a squeeze-excite gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fxquant
from fxquant import solvers


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
    """The network quantized on its inputs, by the fastest solver."""
    model, x = small_net()
    solver = solvers.RoundToNearest()
    return fxquant.quantize(model, [x], config=config, solver=solver, progress=False)


@dataclass(frozen=True)
class FakeValue:
    """A value in memory."""

    name: str
    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class FakeKernel:
    """A timed kernel."""

    node: str
    kernel: str
    milliseconds: float


class FakeCompiled:
    """What a compiled network tells about itself, without a compiler."""

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        return inputs

    def memory_map(self) -> Sequence[FakeValue]:
        a, b = FakeValue("a", 0, 64, 0, 1), FakeValue("b", 64, 32, 1, 2)
        return (a, b, FakeValue("c", 0, 64, 2, 3))

    def profile(self, *inputs: Tensor) -> Sequence[FakeKernel]:
        return (FakeKernel("stem", "kernel_of_the_stem", 0.25), FakeKernel("head", "linear", 0.125))
