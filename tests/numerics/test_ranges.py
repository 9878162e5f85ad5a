"""Range estimators: streaming changes nothing, mass is kept, each estimator does what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError, ConfigError
from fxquant.numerics.ranges import (
    Entropy,
    MinMax,
    MovingAverage,
    Mse,
    Percentile,
    RangeEstimator,
    Statistics,
)
from fxquant.numerics.types import activation_spec, qparams_from_range
from tests.strategies import BITS, SEED

ESTIMATORS = (MinMax(), MovingAverage(), Percentile(99.9), Mse(), Entropy())


def statistics_of(*batches: Tensor) -> Statistics:
    statistics = Statistics()
    for batch in batches:
        statistics.update(batch, "node x")
    return statistics


def quantization_error(x: Tensor, low: float, high: float, bits: int) -> float:
    """Mean squared error of the grid an estimate leads to."""
    q = qparams_from_range(torch.tensor(low), torch.tensor(high), activation_spec(bits))
    codes = torch.round(x / q.scale) + q.zero_point
    back = (codes.clamp(0, q.spec.dtype.qmax) - q.zero_point) * q.scale
    return float((back - x).square().mean())


@given(SEED, st.integers(1, 5))
def test_streamed_min_max_equals_one_batch(seed: int, pieces: int) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 3
    whole, streamed = statistics_of(x), statistics_of(*x.chunk(pieces))
    assert (whole.low, whole.high) == (streamed.low, streamed.high)
    spec = activation_spec(8)
    assert MinMax().estimate(streamed, spec) == (float(x.min()), float(x.max()))


def test_large_batches_are_sampled_but_their_extremes_are_exact() -> None:
    x = torch.randn(8, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    x[5, 1, 17, 3], x[2, 2, 100, 100] = 50.0, -40.0
    statistics = statistics_of(x.contiguous(memory_format=torch.channels_last))
    assert (statistics.low, statistics.high) == (-40.0, 50.0)
    assert statistics.counts.sum() == pytest.approx(x.numel())
    spread = float(np.sqrt((statistics.counts * statistics.centers() ** 2).sum() / x.numel()))
    assert spread == pytest.approx(float(x.std()), rel=0.02)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_growth_keeps_every_value(magnitudes: list[float]) -> None:
    """No value is lost or counted twice, whatever the order of magnitudes."""
    batches = [torch.linspace(-m, m, 33) for m in magnitudes]
    statistics = statistics_of(*batches)
    assert statistics.counts.sum() == 33 * len(magnitudes)
    assert statistics.edge >= max(magnitudes) * (1 - 1e-6)
    used = statistics.centers()[statistics.counts > 0]
    width = 2 * statistics.edge / len(statistics.counts)
    assert used.min() >= -max(magnitudes) - width and used.max() <= max(magnitudes) + width


def test_growth_keeps_mass_in_place() -> None:
    """Merged bins lie where their values were."""
    small = torch.full((100,), 0.75)
    statistics = statistics_of(small, torch.tensor([5.0]))
    centers = statistics.centers()
    near = np.abs(centers - 0.75) <= 2 * statistics.edge / len(centers)
    assert statistics.counts[near].sum() == 100


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(estimator: RangeEstimator, bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"NaN or infinite(.|\n)*node x"):
        statistics_of(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(10),
        torch.full((10,), 3.0),
        torch.full((10,), -3.0),
        torch.tensor([1e-45]),
        torch.tensor([1e-45, 2.0]),
        torch.tensor([-1e30, 1e30]),
        torch.tensor([5.0]),
    ],
    ids=["zeros", "positive", "negative", "subnormal", "mixed", "huge", "single"],
)
def test_degenerate_data_gives_a_usable_grid(estimator: RangeEstimator, x: Tensor) -> None:
    for bits in (2, 8, 16):
        spec = activation_spec(bits)
        low, high = estimator.estimate(statistics_of(x), spec)
        assert math.isfinite(low) and math.isfinite(high) and low <= high
        qparams_from_range(torch.tensor(low), torch.tensor(high), spec)


@given(SEED, BITS)
def test_mse_is_never_worse_than_min_max(seed: int, bits: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, generator=rng) * torch.rand(1, generator=rng) * 10
    x = x.relu() if seed % 2 else x
    statistics, spec = statistics_of(x), activation_spec(bits)
    chosen = quantization_error(x, *Mse().estimate(statistics, spec), bits)
    whole = quantization_error(x, *MinMax().estimate(statistics, spec), bits)
    # The histogram rounds values to bins 1/2048 of the span wide: a small share of an 8-bit step.
    bin_error = (2 * statistics.edge / 2048) ** 2
    assert chosen <= whole * 1.01 + bin_error


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_sixteen_bits_keep_the_bulk_of_the_range(estimator: RangeEstimator) -> None:
    """65,536 levels are finer than the histogram: clipping costs more than rounding."""
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    low, high = estimator.estimate(statistics_of(x), activation_spec(16))
    assert low < -3 and high > 3
    if isinstance(estimator, Mse):
        whole = quantization_error(x, float(x.min()), float(x.max()), 16)
        assert quantization_error(x, low, high, 16) <= 1.01 * whole


def test_mse_cuts_outliers_at_low_bits() -> None:
    x = torch.cat([torch.randn(20000), torch.tensor([60.0])])
    statistics = statistics_of(x)
    low, high = Mse().estimate(statistics, activation_spec(4))
    assert high < 20
    whole = quantization_error(x, float(x.min()), 60.0, 4)
    assert quantization_error(x, low, high, 4) < whole / 3


def test_percentile_cuts_each_end() -> None:
    x = torch.linspace(-1, 1, 100001)
    low, high = Percentile(99.0).estimate(statistics_of(x), activation_spec(8))
    assert abs(low + 0.98) < 0.003 and abs(high - 0.98) < 0.003
    assert Percentile(100.0).estimate(statistics_of(x), activation_spec(8))[1] == pytest.approx(
        1.0, abs=0.001
    )


@pytest.mark.parametrize("percentile", [50, 0, 100.1, -3, math.nan])
def test_percentile_validates(percentile: float) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        Percentile(percentile)


def test_moving_average_follows_definition() -> None:
    batches = [torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 11.0])]
    low, high = MovingAverage().estimate(statistics_of(*batches), activation_spec(8))
    assert (low, high) == pytest.approx((0.9 * -1 + 0.1 * -3, 0.9 * 1 + 0.1 * 11))


def test_entropy_clips_outliers_but_not_a_uniform_range() -> None:
    body = torch.randn(50000, generator=torch.Generator().manual_seed(0))
    _, high = Entropy().estimate(statistics_of(torch.cat([body, torch.tensor([40.0])])),
                                 activation_spec(8))  # fmt: skip
    assert 2.0 < high < 25.0
    uniform = torch.linspace(-1, 1, 50001)
    low, high = Entropy().estimate(statistics_of(uniform), activation_spec(8))
    assert low < -0.9 and high > 0.9


def test_empty_batches_count_for_nothing() -> None:
    statistics = statistics_of(torch.zeros(0, 3))
    assert statistics.empty
    assert statistics_of(torch.zeros(0), torch.ones(2)).low == 1.0
