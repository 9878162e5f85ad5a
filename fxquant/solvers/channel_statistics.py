"""Ranges, moments and distributions of every channel of the values that may be scaled.

A distribution is kept as counts in bins that widen with the magnitude, eight an octave: they add up
over batches whatever the ranges are. Of large batches a random sample is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.ir.channels import ChannelClasses
from fxquant.ir.floats import FloatNetwork

_PER_OCTAVE = 8
_OCTAVES = 48  # around 1
_HALF = _PER_OCTAVE * _OCTAVES
BINS = 2 * _HALF
_COUNTED = 1 << 12  # elements of a channel that are counted in a batch
_SUMMED = 1 << 14  # elements of a channel that are summed in single precision


def bin_centers() -> Tensor:
    """The middle of every bin, float64 `[BINS]`: positive ones, then negative ones."""
    octave, part = torch.arange(_HALF) // _PER_OCTAVE, torch.arange(_HALF) % _PER_OCTAVE
    centers = torch.exp2(octave.double() - _OCTAVES // 2) * (1 + (part + 0.5) / _PER_OCTAVE)
    return torch.cat([centers, -centers])


def _counts(columns: Tensor) -> Tensor:
    """Elements of each column in every bin; `[N, C]` -> float32 `[C, BINS]`.

    The exponent of a float32 and the first bits behind it are the number of its bin.
    """
    count, channels = columns.shape
    if count > _COUNTED:
        rng = torch.Generator().manual_seed(0)
        chosen = torch.randint(count, (_COUNTED,), generator=rng)
        columns = columns[chosen.to(columns.device)]
    bits = columns.float().contiguous().view(torch.int32)
    octave_and_part = (bits & 0x7FFFFFFF) >> 20
    first = (127 - _OCTAVES // 2) * _PER_OCTAVE
    place = (octave_and_part - first).clamp(0, _HALF - 1) + _HALF * (bits < 0)
    offsets = BINS * torch.arange(channels, device=columns.device)
    flat = (place + offsets).flatten()
    return torch.bincount(flat, minlength=BINS * channels).reshape(-1, BINS).float()


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Of one value; float64, in the shape of its classes (see ChannelClasses.values).

    Attributes:
        low: Smallest element of each channel.
        high: Largest element.
        total: Sum of the elements.
        squares: Sum of their squares.
        count: How many there are in a channel.
        counts: How many of the sampled elements lie in each bin, `[..., BINS]`; see bin_centers.
    """

    low: Tensor
    high: Tensor
    total: Tensor
    squares: Tensor
    count: int
    counts: Tensor

    @classmethod
    def of(cls, x: Tensor, shape: Sequence[int]) -> ChannelStatistics:
        """Statistics of `x` over the axes where `shape` is 1."""
        kept = [i for i, n in enumerate(shape) if n > 1]
        rest = [i for i, n in enumerate(shape) if n == 1]
        columns = x.permute(*rest, *kept).reshape(-1, prod(shape))  # a view of channels-last maps
        parts = columns.split(_SUMMED)  # single precision is enough within one
        total = torch.stack([part.sum(0) for part in parts]).double().sum(0)
        squares = torch.stack([part.square().sum(0) for part in parts]).double().sum(0)
        ends = columns.amin(0).double(), columns.amax(0).double()
        low, high, total, squares = (t.reshape(list(shape)) for t in (*ends, total, squares))
        counts = _counts(columns).reshape([*shape, BINS])
        return cls(low, high, total, squares, len(columns), counts)

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        return ChannelStatistics(
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.total + other.total,
            self.squares + other.squares,
            self.count + other.count,
            self.counts + other.counts,
        )

    @property
    def power(self) -> Tensor:
        """Mean square."""
        return self.squares / self.count

    @property
    def variance(self) -> Tensor:
        """Variance over samples and positions."""
        return (self.power - (self.total / self.count) ** 2).clamp(min=0)

    def error(self, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Expected squared error of every channel on a grid of its own.

        Zeros are exact, what is nearer to zero than half a step becomes zero, the error of the rest
        is uniform; what lies outside the grid becomes its end.

        Args:
            step: Step of each channel's grid, in the shape of the classes.
            low: Smallest value on it.
            high: Largest value.
        """
        filled = self.counts.flatten(0, -2).any(0)
        counts, x = self.counts[..., filled], bin_centers()[filled]
        x = x.clamp(self.low[..., None], self.high[..., None])
        step, low, high = step[..., None], low[..., None], high[..., None]
        inside = torch.where(x.abs() < step / 2, x.square(), step.square() / 12)
        outside = (x - x.clamp(low, high)).square()
        error = torch.where(outside > 0, outside, inside)
        return (counts * error).sum(-1) / counts.sum(-1)


class _Observer(FloatNetwork):
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
