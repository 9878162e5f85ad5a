"""Ranges and moments of every channel of the values that may be scaled, over the samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxquant.ir.channels import ChannelClasses


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Of one value; float64, in the shape of its classes (see ChannelClasses.values).

    Attributes:
        low: Smallest element of each channel.
        high: Largest element.
        total: Sum of the elements.
        squares: Sum of their squares.
        nonzero: How many differ from zero.
        count: How many there are in a channel.
    """

    low: Tensor
    high: Tensor
    total: Tensor
    squares: Tensor
    nonzero: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor, shape: Sequence[int]) -> ChannelStatistics:
        """Statistics of `x` over the axes where `shape` is 1."""
        kept = [i for i, n in enumerate(shape) if n > 1]
        rest = [i for i, n in enumerate(shape) if n == 1]
        rows = x.permute(*kept, *rest).reshape([shape[i] for i in kept] + [-1])
        low, high = rows.aminmax(dim=-1)
        sums = (rows.sum(-1, dtype=torch.float64), rows.square().sum(-1, dtype=torch.float64))
        low, high, total, squares, nonzero = (
            t.double().reshape(list(shape)) for t in (low, high, *sums, rows.count_nonzero(-1))
        )
        return cls(low, high, total, squares, nonzero, rows.shape[-1])

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        return ChannelStatistics(
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.total + other.total,
            self.squares + other.squares,
            self.nonzero + other.nonzero,
            self.count + other.count,
        )

    @property
    def power(self) -> Tensor:
        """Mean square."""
        return self.squares / self.count

    @property
    def variance(self) -> Tensor:
        """Variance over samples and positions."""
        return (self.power - (self.total / self.count) ** 2).clamp(min=0)

    @property
    def density(self) -> Tensor:
        """Fraction of the elements that differ from zero."""
        return self.nonzero / self.count


class _Observer(Interpreter):
    """Runs the float graph and collects the statistics."""

    def __init__(self, gm: GraphModule, classes: ChannelClasses) -> None:
        super().__init__(gm)
        self.classes = classes
        self.found: dict[str, ChannelStatistics] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        known = self.classes.values.get(n.name)
        if known is not None:
            new = ChannelStatistics.of(value, known.shape)
            old = self.found.get(n.name)
            self.found[n.name] = new if old is None else old + new
        return value


@torch.no_grad()
def observe_channels(
    gm: GraphModule, classes: ChannelClasses, batches: Iterable[Sequence[Tensor]]
) -> dict[str, ChannelStatistics]:
    """Statistics of every value that can be scaled at least in part, by node name.

    Args:
        gm: The float graph.
        classes: Its channel classes.
        batches: Batches of the network's inputs.
    """
    observer = _Observer(gm, classes)
    for inputs in batches:
        observer.run(*inputs)
    return observer.found
