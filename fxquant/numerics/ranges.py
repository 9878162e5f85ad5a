"""Streaming range estimation: a histogram that grows, and the estimators that read it.

`Statistics` sees every calibration value once and keeps `BINS` counts, whatever the number of
batches. Of large batches it counts a random sample; the extremes are those of all values. The
estimators are pure functions of it: min-max, moving average, percentile, MSE, entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import CalibrationError, ConfigError
from fxquant.numerics.types import QuantSpec

BINS = 2048
_COUNTED = 1 << 18  # values of a batch that are counted


@dataclass(slots=True)
class Statistics:
    """What is remembered of one value's calibration data.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        batches: Per-batch `(min, max)`, exponentially averaged lazily by the estimator: only the
            running average is kept.
        counts: Histogram over `[-edge, edge]`, float64 `[BINS]`.
        edge: Outer edge of the histogram.
    """

    low: float = math.inf
    high: float = -math.inf
    average: tuple[float, float] | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    edge: float = 0.0

    def update(self, x: Tensor, where: str, momentum: float = 0.9) -> None:
        """Take in a batch.

        Raises:
            CalibrationError: The batch has NaN or infinite values.
        """
        x = x.detach().float()
        if x.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                "calibration produced NaN or infinite values",
                where=where,
                why="a range cannot be estimated from them",
                remedy="check the calibration data and the model's weights",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.average is None:
            self.average = (low, high)
        else:
            a, b = self.average
            keep = momentum
            self.average = (keep * a + (1 - keep) * low, keep * b + (1 - keep) * high)
        self._grow(max(abs(low), abs(high)))
        if self.edge > 0:
            values = _sample(x)
            counts = torch.histc(values, BINS, -self.edge, self.edge)
            self.counts += counts.double().cpu().numpy() * (x.numel() / values.numel())

    def _grow(self, magnitude: float) -> None:
        """Double the histogram's span until it covers `magnitude`; bins merge in pairs."""
        if magnitude == 0.0:
            return
        if self.edge == 0.0:
            self.edge = magnitude
        while self.edge < magnitude:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS)
            self.counts[BINS // 4 : BINS // 4 * 3] = merged
            self.edge *= 2

    @property
    def empty(self) -> bool:
        """Whether no data was seen."""
        return self.low > self.high

    def centers(self) -> np.ndarray:
        """Bin centres, `[BINS]`."""
        width = 2 * self.edge / BINS
        return -self.edge + width * (np.arange(BINS) + 0.5)


def _sample(x: Tensor) -> Tensor:
    """Elements to count; which ones depends on nothing but the shape."""
    if x.numel() <= _COUNTED:
        return x
    rng = torch.Generator().manual_seed(0)
    chosen = torch.randint(x.numel(), (_COUNTED,), generator=rng).to(x.device)
    return x.take(chosen)


@runtime_checkable
class RangeEstimator(Protocol):
    """Chooses the real range a grid covers."""

    def estimate(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """`(low, high)`, `low <= high`."""
        ...


@dataclass(frozen=True, slots=True)
class MinMax:
    """The whole range seen."""

    def estimate(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """See RangeEstimator."""
        return statistics.low, statistics.high


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """Exponential average (0.9) of the batches' minima and maxima."""

    def estimate(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """See RangeEstimator."""
        assert statistics.average is not None
        return statistics.average


@dataclass(frozen=True, slots=True)
class Percentile:
    """Cut `100 - percentile` percent of the values at each end.

    Attributes:
        percentile: In (50, 100].
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile {self.percentile} is outside (50, 100]")

    def estimate(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """See RangeEstimator."""
        total = statistics.counts.sum()
        if total == 0:
            return statistics.low, statistics.high
        cumulative = np.cumsum(statistics.counts) / total
        cut = (100 - self.percentile) / 100
        centers = statistics.centers()
        low = centers[min(int(np.searchsorted(cumulative, cut, side="right")), BINS - 1)]
        high = centers[min(int(np.searchsorted(cumulative, 1 - cut)), BINS - 1)]
        bounds = np.clip((low, high), statistics.low, statistics.high)
        return float(bounds[0]), float(bounds[1])


def _quantization_error(
    centers: np.ndarray, counts: np.ndarray, low: float, high: float, levels: int
) -> float:
    """Expected squared error of the affine grid over `[low, high]` (0 exactly representable)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (levels - 1)
    if scale <= 0:
        return math.inf
    zero_point = round(-low / scale)
    codes = np.clip(np.round(centers / scale) + zero_point, 0, levels - 1)
    return float((counts * (centers - (codes - zero_point) * scale) ** 2).sum())


@dataclass(frozen=True, slots=True)
class Mse:
    """The range with the least squared quantization error on the histogram.

    Attributes:
        steps: Shrinkage steps tried for each end.
    """

    steps: int = 60

    def estimate(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """See RangeEstimator."""
        low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
        used = statistics.counts > 0
        centers, counts = statistics.centers()[used], statistics.counts[used]
        if high - low <= 0 or counts.size == 0:
            return statistics.low, statistics.high
        levels = 1 << spec.dtype.bits
        factors = np.linspace(1.0, 0.15, self.steps)
        best = (low, high)
        for _ in range(2):  # shrink both ends together, then each alone from there
            for ends in ((1, 1), (0, 1), (1, 0)):
                ranges = [
                    (best[0] * (f if ends[0] else 1), best[1] * (f if ends[1] else 1))
                    for f in factors
                ]
                errors = [_quantization_error(centers, counts, *r, levels) for r in ranges]
                best = ranges[int(np.argmin(errors))]
        return best


@dataclass(frozen=True, slots=True)
class Entropy:
    """The range whose quantized histogram diverges least from the original (Kullback-Leibler).

    Attributes:
        steps: Clipping thresholds tried.
    """

    steps: int = 80

    def estimate(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """See RangeEstimator."""
        if statistics.edge == 0:
            return statistics.low, statistics.high
        levels = 1 << (spec.dtype.bits - 1)
        centers, counts = statistics.centers(), statistics.counts
        largest = max(abs(statistics.low), abs(statistics.high))
        best, threshold = math.inf, largest
        for candidate in np.linspace(largest, largest * 0.2, self.steps):
            divergence = self._divergence(centers, counts, candidate, levels)
            if divergence < best:
                best, threshold = divergence, float(candidate)
        return max(statistics.low, -threshold), min(statistics.high, threshold)

    @staticmethod
    def _divergence(
        centers: np.ndarray, counts: np.ndarray, threshold: float, levels: int
    ) -> float:
        inside = np.abs(centers) <= threshold
        p = counts[inside].copy()
        if p.size < 2:
            return math.inf
        outside = counts[~inside]
        p[0] += outside[centers[~inside] < 0].sum()
        p[-1] += outside[centers[~inside] > 0].sum()
        groups = np.minimum(np.arange(p.size) * 2 * levels // p.size, 2 * levels - 1)
        raw = counts[inside]
        sums = np.bincount(groups, raw, 2 * levels)
        filled = np.bincount(groups, raw > 0, 2 * levels)
        q = np.where(raw > 0, sums[groups] / np.maximum(filled[groups], 1), 0.0)
        if p.sum() == 0 or q.sum() == 0:
            return math.inf
        p, q = p / p.sum(), q / q.sum()
        mask = p > 0
        return float((p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-12))).sum())
