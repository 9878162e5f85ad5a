"""Histograms of a tensor before and after quantization, on bins that are aligned with the codes.

Every bin holds the same number of neighbouring codes, so an even distribution of codes looks even.
One more bin at either end holds what the grid cannot represent: after quantization it is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.numerics.types import IntType

BINS = 64  # at most, from 128 codes on
_USUAL = 0.999  # share of the values that the usual range holds


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts over the codes of a grid, clipped values in the first and the last bin.

    Attributes:
        before: Of the float values; empty if they are not known.
        after: Of the quantized values.
        ends: The real values at the two ends of the grid.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    ends: tuple[float, float]

    @property
    def clipped(self) -> float:
        """Share of the float values outside the grid."""
        total = sum(self.before)
        return (self.before[0] + self.before[-1]) / total if total else 0.0

    @property
    def used(self) -> float:
        """Share of the grid that holds all but one in a thousand of the float values."""
        inside = self.before[1:-1]
        rest = (1 - _USUAL) * sum(inside)
        if not inside or rest == 0:
            return 1.0
        low, high = 0, len(inside)
        dropped = 0
        while high - low > 1:
            smaller, place = min((inside[low], low), (inside[high - 1], high - 1))
            if dropped + smaller > rest:
                break
            dropped += smaller
            low, high = (low + 1, high) if place == low else (low, high - 1)
        return (high - low) / len(inside)


def code_counts(codes: Tensor, dtype: IntType) -> Tensor:
    """Counts of codes, which may lie between and beyond the integers of their type.

    Args:
        codes: `real / scale + zero_point`, any shape.
        dtype: Their type.

    Returns:
        int64 `[bins + 2]`.
    """
    levels = dtype.qmax - dtype.qmin + 1
    bins = _bins(levels)
    place = torch.floor((codes.double() - dtype.qmin + 0.5) * (bins / levels)) + 1
    return torch.bincount(place.clamp(0, bins + 1).long().flatten(), minlength=bins + 2)


def _bins(levels: int) -> int:
    """As many bins as divide the codes evenly."""
    return levels if levels < 2 * BINS else max(d for d in range(1, BINS + 1) if levels % d == 0)
