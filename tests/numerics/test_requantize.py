"""The requantization against its definition in big integers, and against exact real rounding."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import NumericsError
from fxquant.numerics.requantize import (
    FRACTION_BITS,
    LARGEST_MULTIPLIER,
    MAX_SHIFT,
    MIN_SHIFT,
    SMALLEST_MULTIPLIER,
    Requant,
    requant_from_real,
    scale_accumulator,
    to_codes,
)
from tests.strategies import INT32, MULTIPLIER, SHIFT, ZERO_POINT, int32_near_ties


def saturate(value: int) -> int:
    return max(-(1 << 15), min((1 << 15) - 1, value))


def scaled_by_definition(acc: int, multiplier: int, shift: int) -> int:
    """`u` of DESIGN section 4 in Python integers."""
    shifted = (acc + (1 << (shift - 1))) >> shift if shift > 0 else acc << -shift
    t = saturate(shifted)
    return (t * multiplier + (1 << 14)) >> 15


def code_by_definition(scaled: int, zero_point: int, qmin: int, qmax: int) -> int:
    value = saturate(scaled) + 32 + 64 * zero_point >> 6
    return max(qmin, min(qmax, value))


Scale = Callable[[Tensor, int, int], Tensor]


def check_definition(acc: int, multiplier: int, shift: int, scale: Scale = scale_accumulator):
    """One accumulator against the definition."""
    actual = int(scale(torch.tensor([acc]), multiplier, shift))
    assert actual == scaled_by_definition(acc, multiplier, shift)


def check_ties(scale: Scale = scale_accumulator) -> None:
    """Ties round up, one below them down, on every shift."""
    for shift in range(MIN_SHIFT, MAX_SHIFT + 1):
        step = 1 << max(shift, 0)
        for base in (-3, -1, 0, 1, 5):
            for offset in (-1, 0, 1):
                acc = base * step + step // 2 + offset
                for multiplier in (1 << 14, (1 << 15) - 1, 20001):
                    check_definition(acc, multiplier, shift, scale)


def check_rounding_error(scale: Scale = scale_accumulator, finish=to_codes) -> None:
    """At most 1 LSB from the exact rounding, for less than 1 % of the codes.

    Multipliers are spread over the domain: a single one above 2^-3 has so few accumulators that
    its share of near ties may be larger.
    """
    rng = torch.Generator().manual_seed(0)
    differing = total = 0
    for exponent in torch.linspace(-20, 1, 120, dtype=torch.float64):
        requant = requant_from_real(torch.exp2(exponent))
        span = 255 / float(requant.real)
        acc = ((torch.rand(500, generator=rng, dtype=torch.float64) - 0.5) * 2 * span).long()
        scaled = scale(acc, int(requant.multiplier), int(requant.shift))
        for zero_point in (0, 1, 127, 255):
            exact = torch.floor(acc * requant.real + 0.5) + zero_point
            codes = finish(scaled, zero_point, 0, 255)
            difference = (codes.double() - exact.clamp(0, 255)).abs()
            assert float(difference.max()) <= 1
            differing += int((difference > 0).sum())
            total += difference.numel()
    assert differing < 0.01 * total


@given(INT32, MULTIPLIER, SHIFT)
def test_scale_equals_definition(acc: int, multiplier: int, shift: int) -> None:
    check_definition(acc, multiplier, shift)


@given(st.data(), MULTIPLIER, SHIFT)
def test_scale_equals_definition_near_ties(data, multiplier: int, shift: int) -> None:
    check_definition(data.draw(int32_near_ties(shift)), multiplier, shift)


def test_ties_on_every_shift() -> None:
    check_ties()


@given(st.integers(-(1 << 16), 1 << 16), ZERO_POINT, st.integers(0, 254))
def test_codes_equal_definition(scaled: int, zero_point: int, qmin: int) -> None:
    for qmax in (qmin + 1, 255):
        actual = int(to_codes(torch.tensor([scaled]), zero_point, qmin, qmax))
        assert actual == code_by_definition(scaled, zero_point, qmin, qmax)


@given(st.integers(-(1 << 16), 1 << 16), ZERO_POINT)
def test_saturation_of_the_sum_changes_no_code(scaled: int, zero_point: int) -> None:
    """What the docstring promises kernels: int32 without saturation gives the same codes."""
    unsaturated = max(0, min(255, (scaled + 32 + 64 * zero_point) >> 6))
    assert int(to_codes(torch.tensor([scaled]), zero_point, 0, 255)) == unsaturated


@given(INT32, MULTIPLIER, SHIFT)
def test_scaled_fits_int16(acc: int, multiplier: int, shift: int) -> None:
    """Kernels keep `u` in int16 lanes."""
    scaled = int(scale_accumulator(torch.tensor([acc]), multiplier, shift))
    assert -(1 << 15) <= scaled < 1 << 15


def test_rounding_error_against_exact_reals() -> None:
    check_rounding_error()


def test_error_has_no_bias() -> None:
    """The mean difference to the unrounded value is far below an LSB: errors do not add up."""
    requant = requant_from_real(torch.tensor(0.00137, dtype=torch.float64))
    acc = torch.arange(-90000, 90000)
    codes = to_codes(
        scale_accumulator(acc, int(requant.multiplier), int(requant.shift)), 127, 0, 255
    )
    inside = (codes > 0) & (codes < 255)
    exact = acc * requant.real + 127
    error = codes.double() - exact
    assert abs(float(error[inside].mean())) < 0.01
    assert float(error[inside].square().mean().sqrt()) < 0.2887 + 0.001


@given(st.floats(SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER, exclude_max=True))
def test_multiplier_is_accurate(real: float) -> None:
    """Relative error at most 2^-15 over the whole domain; exact value by Fraction."""
    requant = requant_from_real(torch.tensor(real, dtype=torch.float64))
    exponent = 15 + FRACTION_BITS + int(requant.shift)
    value = Fraction(int(requant.multiplier)) / Fraction(2) ** exponent
    assert abs(value - Fraction(real)) <= Fraction(real) / (1 << 15)
    assert float(requant.real) == float(value)
    assert MIN_SHIFT <= int(requant.shift) <= MAX_SHIFT


@pytest.mark.parametrize(
    "real",
    [0.0, -1.0, float("nan"), float("inf"), SMALLEST_MULTIPLIER * 0.999, LARGEST_MULTIPLIER],
)
def test_domain_error_names_the_tensor(real: float) -> None:
    with pytest.raises(NumericsError, match=r"out of range(.|\n)*layer3\.conv"):
        requant_from_real(torch.tensor([1.0, real], dtype=torch.float64), "layer3.conv")


def test_carry_of_the_mantissa() -> None:
    """0.99999 rounds up to the next power of two and must move the shift along."""
    requant = requant_from_real(torch.tensor(0.9999999, dtype=torch.float64))
    assert float(requant.real) == 1.0
    top = requant_from_real(torch.tensor(LARGEST_MULTIPLIER * (1 - 1e-9), dtype=torch.float64))
    assert int(top.shift) == MIN_SHIFT


@pytest.mark.parametrize(
    ("multiplier", "shift", "multiplier_type", "shift_type"),
    [
        (1 << 13, 0, torch.int16, torch.int8),
        (1 << 14, MAX_SHIFT + 1, torch.int16, torch.int8),
        (1 << 14, MIN_SHIFT - 1, torch.int16, torch.int8),
        (1 << 14, 0, torch.int32, torch.int8),
        (1 << 14, 0, torch.int16, torch.int32),
    ],
)
def test_requant_validates(multiplier, shift, multiplier_type, shift_type) -> None:
    with pytest.raises(NumericsError):
        Requant(
            torch.tensor(multiplier, dtype=multiplier_type), torch.tensor(shift, dtype=shift_type)
        )


def test_per_channel_equals_channel_by_channel() -> None:
    rng = torch.Generator().manual_seed(3)
    acc = torch.randint(-(1 << 24), 1 << 24, (2, 17, 5), generator=rng)
    multiplier = torch.randint(1 << 14, 1 << 15, (17,), generator=rng)
    shift = torch.arange(17) - 3
    together = scale_accumulator(acc, multiplier[:, None], shift[:, None])
    for c in range(17):
        alone = scale_accumulator(acc[:, c], int(multiplier[c]), int(shift[c]))
        assert torch.equal(together[:, c], alone)
