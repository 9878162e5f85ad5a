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
    Requant,
    requant_from_real,
    scale_accumulator,
    to_codes,
)
from fxquant.numerics.width import WIDTH_8, WIDTH_16, Width, width_of, width_of_dtype
from tests.strategies import accumulators, int32_near_ties, multipliers, shifts, zero_points

WIDTHS = (WIDTH_8, WIDTH_16)
each_width = pytest.mark.parametrize("width", WIDTHS, ids=lambda w: f"u{w.bits}")


def saturate(value: int, bits: int) -> int:
    """To a signed word of twice the code's bits."""
    return max(-(1 << (2 * bits - 1)), min((1 << (2 * bits - 1)) - 1, value))


def scaled_by_definition(acc: int, multiplier: int, shift: int, bits: int) -> int:
    """`u` of DESIGN section 4 in Python integers."""
    shifted = (acc + (1 << (shift - 1))) >> shift if shift > 0 else acc << -shift
    t = saturate(shifted, bits)
    return (t * multiplier + (1 << (2 * bits - 2))) >> (2 * bits - 1)


def code_by_definition(scaled: int, zero_point: int, qmin: int, qmax: int, bits: int) -> int:
    k = bits - 2
    value = saturate(scaled, bits) + (1 << (k - 1)) + (zero_point << k) >> k
    return max(qmin, min(qmax, value))


Scale = Callable[[Tensor, int, int, Width], Tensor]
Finish = Callable[[Tensor, int, int, int, Width], Tensor]


def check_definition(
    acc: int, multiplier: int, shift: int, width: Width, scale: Scale = scale_accumulator
) -> None:
    """One accumulator against the definition."""
    actual = int(scale(torch.tensor([acc]), multiplier, shift, width))
    assert actual == scaled_by_definition(acc, multiplier, shift, width.bits)


def check_ties(scale: Scale = scale_accumulator, width: Width = WIDTH_8) -> None:
    """Ties round up, one below them down, on every shift."""
    top = 1 << width.multiplier_bits
    for shift in range(width.min_shift, width.max_shift + 1):
        step = 1 << max(shift, 0)
        for base in (-3, -1, 0, 1, 5):
            for offset in (-1, 0, 1):
                acc = base * step + step // 2 + offset
                for multiplier in (top // 2, top - 1, top * 20001 >> 15):
                    check_definition(acc, multiplier, shift, width, scale)


def check_rounding_error(
    scale: Scale = scale_accumulator, finish: Finish = to_codes, width: Width = WIDTH_8
) -> None:
    """At most 1 LSB from the exact rounding, for less than 1 % of the codes.

    Multipliers are spread over the domain: a single one above 2^-3 has so few accumulators that
    its share of near ties may be larger.
    """
    rng = torch.Generator().manual_seed(0)
    differing = total = 0
    qmax = (1 << width.bits) - 1
    for exponent in torch.linspace(-20, 1, 120, dtype=torch.float64):
        requant = requant_from_real(torch.exp2(exponent), width=width)
        span = qmax / float(requant.real)
        acc = ((torch.rand(500, generator=rng, dtype=torch.float64) - 0.5) * 2 * span).long()
        scaled = scale(acc, int(requant.multiplier), int(requant.shift), width)
        for zero_point in (0, 1, qmax // 2, qmax):
            exact = torch.floor(acc * requant.real + 0.5) + zero_point
            codes = finish(scaled, zero_point, 0, qmax, width)
            difference = (codes.double() - exact.clamp(0, qmax)).abs()
            assert float(difference.max()) <= 1
            differing += int((difference > 0).sum())
            total += difference.numel()
    assert differing < 0.01 * total


@each_width
def test_constants_follow_from_the_bits(width: Width) -> None:
    bits = width.bits
    assert width.fraction_bits == bits - 2
    assert (width.word_min, width.word_max) == (-(1 << (2 * bits - 1)), (1 << (2 * bits - 1)) - 1)
    assert torch.iinfo(width.codes).max == (1 << bits) - 1
    assert torch.iinfo(width.multiplier).bits == 2 * bits
    assert width_of(bits) is width and width_of_dtype(width.codes) is width


def test_codes_below_eight_bits_travel_in_eight() -> None:
    assert all(width_of(bits) is WIDTH_8 for bits in range(2, 9))


@given(st.data(), st.sampled_from(WIDTHS))
def test_scale_equals_definition(data: st.DataObject, width: Width) -> None:
    acc, multiplier = data.draw(accumulators(width)), data.draw(multipliers(width))
    check_definition(acc, multiplier, data.draw(shifts(width)), width)


@given(st.data(), st.sampled_from(WIDTHS))
def test_scale_equals_definition_near_ties(data: st.DataObject, width: Width) -> None:
    shift, multiplier = data.draw(shifts(width)), data.draw(multipliers(width))
    check_definition(data.draw(int32_near_ties(shift)), multiplier, shift, width)


@each_width
def test_ties_on_every_shift(width: Width) -> None:
    check_ties(width=width)


@each_width
def test_the_largest_accumulators_do_not_overflow(width: Width) -> None:
    """Accumulators of 16-bit codes become results of either width."""
    for acc in (WIDTH_16.largest_accumulator, -WIDTH_16.largest_accumulator):
        for shift in range(width.min_shift, width.max_shift + 1):
            check_definition(acc, (1 << width.multiplier_bits) - 1, shift, width)


@given(st.data(), st.sampled_from(WIDTHS))
def test_codes_equal_definition(data: st.DataObject, width: Width) -> None:
    top = (1 << width.bits) - 1
    scaled = data.draw(st.integers(2 * width.word_min, 2 * width.word_max))
    zero_point, qmin = data.draw(zero_points(width)), data.draw(st.integers(0, top - 1))
    for qmax in (qmin + 1, top):
        actual = to_codes(torch.tensor([scaled]), zero_point, qmin, qmax, width)
        assert actual.dtype == width.codes
        assert int(actual) == code_by_definition(scaled, zero_point, qmin, qmax, width.bits)


@given(st.data(), st.sampled_from(WIDTHS))
def test_saturation_of_the_sum_changes_no_code(data: st.DataObject, width: Width) -> None:
    """What the docstring promises kernels: wider integers without saturation give the same."""
    scaled = data.draw(st.integers(2 * width.word_min, 2 * width.word_max))
    zero_point, k, top = data.draw(zero_points(width)), width.bits - 2, (1 << width.bits) - 1
    unsaturated = max(0, min(top, (scaled + (1 << (k - 1)) + (zero_point << k)) >> k))
    assert int(to_codes(torch.tensor([scaled]), zero_point, 0, top, width)) == unsaturated


@given(st.data(), st.sampled_from(WIDTHS))
def test_scaled_fits_a_word(data: st.DataObject, width: Width) -> None:
    """Kernels keep `u` in words."""
    acc, multiplier = data.draw(accumulators(width)), data.draw(multipliers(width))
    scaled = int(
        scale_accumulator(torch.tensor([acc]), multiplier, data.draw(shifts(width)), width)
    )
    assert width.word_min <= scaled <= width.word_max


@each_width
def test_rounding_error_against_exact_reals(width: Width) -> None:
    check_rounding_error(width=width)


@each_width
def test_error_has_no_bias(width: Width) -> None:
    """The mean difference to the unrounded value is far below an LSB: errors do not add up."""
    middle, top = (1 << (width.bits - 1)) - 1, (1 << width.bits) - 1
    real = torch.tensor(0.00137, dtype=torch.float64)
    requant = requant_from_real(real, width=width)
    reach = int(top / float(real) / 2)
    acc = torch.arange(-reach, reach, max(1, reach // 90000))
    scaled = scale_accumulator(acc, int(requant.multiplier), int(requant.shift), width)
    codes = to_codes(scaled, middle, 0, top, width).double()
    inside = (codes > 0) & (codes < top)
    error = codes - (acc * requant.real + middle)
    assert abs(float(error[inside].mean())) < 0.01
    assert float(error[inside].square().mean().sqrt()) < 0.2887 + 0.001


@given(st.data(), st.sampled_from(WIDTHS))
def test_multiplier_is_accurate(data: st.DataObject, width: Width) -> None:
    """Relative error at most 2^-15 or 2^-31 over the whole domain; exact value by Fraction."""
    low, high = width.smallest_multiplier, width.largest_multiplier
    real = data.draw(st.floats(low, high, exclude_max=True))
    requant = requant_from_real(torch.tensor(real, dtype=torch.float64), width=width)
    exponent = 2 * width.bits - 1 + width.bits - 2 + int(requant.shift)
    value = Fraction(int(requant.multiplier)) / Fraction(2) ** exponent
    assert abs(value - Fraction(real)) <= Fraction(real) / (1 << (2 * width.bits - 1))
    assert float(requant.real) == float(value)
    assert width.min_shift <= int(requant.shift) <= width.max_shift


@each_width
@pytest.mark.parametrize("bad", ["zero", "negative", "nan", "inf", "small", "large"])
def test_domain_error_names_the_tensor(width: Width, bad: str) -> None:
    values = {
        "zero": 0.0, "negative": -1.0, "nan": float("nan"), "inf": float("inf"),
        "small": width.smallest_multiplier * 0.999, "large": width.largest_multiplier,
    }  # fmt: skip
    real = torch.tensor([1.0, values[bad]], dtype=torch.float64)
    with pytest.raises(NumericsError, match=r"out of range(.|\n)*layer3\.conv"):
        requant_from_real(real, "layer3.conv", width)


@each_width
def test_carry_of_the_mantissa(width: Width) -> None:
    """A real just below a power of two rounds up to it and must move the shift along."""
    below = 1 - 2.0 ** -(2 * width.bits + 2)
    requant = requant_from_real(torch.tensor(below, dtype=torch.float64), width=width)
    assert float(requant.real) == 1.0
    top = torch.tensor(width.largest_multiplier * below, dtype=torch.float64)
    assert int(requant_from_real(top, width=width).shift) == width.min_shift


@pytest.mark.parametrize(
    ("multiplier", "shift", "multiplier_type", "shift_type", "width"),
    [
        (1 << 13, 0, torch.int16, torch.int8, WIDTH_8),
        (1 << 14, 25, torch.int16, torch.int8, WIDTH_8),
        (1 << 14, -15, torch.int16, torch.int8, WIDTH_8),
        (1 << 14, 0, torch.int32, torch.int8, WIDTH_8),
        (1 << 14, 0, torch.int16, torch.int32, WIDTH_8),
        (1 << 14, 0, torch.int16, torch.int8, WIDTH_16),
        (1 << 29, 0, torch.int32, torch.int8, WIDTH_16),
        (1 << 30, -31, torch.int32, torch.int8, WIDTH_16),
    ],
)
def test_requant_validates(multiplier, shift, multiplier_type, shift_type, width) -> None:
    with pytest.raises(NumericsError):
        Requant(
            torch.tensor(multiplier, dtype=multiplier_type),
            torch.tensor(shift, dtype=shift_type),
            width,
        )


@each_width
@pytest.mark.parametrize("span", [1, 128, 255, 256, 32767, 32768, 65534, 65535])
def test_largest_ratio_is_where_an_operand_begins_to_saturate(width: Width, span: int) -> None:
    """Just below the bound t of the extreme operand is exact, at the next power of two not."""
    bound = width.largest_ratio(span)

    def exceeds(ratio: float) -> bool:
        if ratio >= width.largest_multiplier:
            return True
        shift = int(requant_from_real(torch.tensor(ratio, dtype=torch.float64), width=width).shift)
        t = (span + (1 << (shift - 1))) >> shift if shift > 0 else span << -shift
        return t > width.word_max + (shift > 0)  # a rounding may lose the last unit

    assert not exceeds(bound * (1 - 1e-12))
    assert exceeds(bound * 1.5)


@each_width
def test_per_channel_equals_channel_by_channel(width: Width) -> None:
    rng = torch.Generator().manual_seed(3)
    acc = torch.randint(-(1 << 24), 1 << 24, (2, 17, 5), generator=rng)
    top = 1 << width.multiplier_bits
    multiplier = torch.randint(top // 2, top, (17,), generator=rng)
    shift = torch.arange(17) - 3
    together = scale_accumulator(acc, multiplier[:, None], shift[:, None], width)
    for c in range(17):
        alone = scale_accumulator(acc[:, c], int(multiplier[c]), int(shift[c]), width)
        assert torch.equal(together[:, c], alone)
