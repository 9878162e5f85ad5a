"""The accumulator bound is an upper bound on every partial sum kernels can form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import NumericsError
from fxquant.numerics.accumulator import (
    INT32_MAX,
    accumulator_bound,
    check_accumulator,
    fits_int32,
)
from tests.strategies import SEED, ZERO_POINT, random_weight


@given(
    SEED, ZERO_POINT, st.sampled_from((*range(1, 9), 16)), st.sampled_from((0, 1000, -(1 << 20)))
)
def test_bound_holds_for_the_worst_input(seed: int, zero_point: int, bits: int, bias: int) -> None:
    """The adversarial codes: extreme where the weight has the right sign, in any order."""
    qmax = (1 << bits) - 1
    zero_point = min(zero_point * 257 if bits == 16 else zero_point, qmax)
    weight = random_weight((3, 2, 3, 3), seed)
    biases = torch.full((3,), bias, dtype=torch.int32)
    bound = accumulator_bound(weight, biases, zero_point, qmax)
    flat = weight.flatten(1).long()
    signed = -(1 << 15) if bits == 16 else -128
    for storage_offset in (0, signed):  # as unsigned and as signed codes, zero point folded or not
        correction = (zero_point + storage_offset) * flat.sum(1)
        for subtract in (zero_point, -storage_offset):
            low, high = 0 - subtract, qmax - subtract
            for sign in (1, -1):
                worst = torch.where(flat * sign > 0, high, low) * flat
                partial = worst.cumsum(1).abs().amax(1)
                total = worst.sum(1).abs() + biases.long().abs()
                assert int(partial.max()) <= bound
                assert int(total.max()) <= bound
                assert int((biases.long() - correction).abs().max()) <= bound


def test_error_names_the_tensor() -> None:
    weight = torch.full((2, 1 << 16), 127, dtype=torch.int8)
    bias = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(NumericsError, match=r"more than int32(.|\n)*fc7"):
        check_accumulator(weight, bias, 255, 255, 0, "fc7")


def test_rounding_half_counts() -> None:
    """A bias that fits alone but not with the rounding half is refused."""
    weight = torch.zeros(1, 1, dtype=torch.int8)
    bias = torch.tensor([INT32_MAX - 100], dtype=torch.int32)
    check_accumulator(weight, bias, 0, 255, 0, "x")
    with pytest.raises(NumericsError):
        check_accumulator(weight, bias, 0, 255, 20, "x")


def test_wide_codes_have_wide_accumulators() -> None:
    """What leaves int32 is fine for 16-bit codes up to 2^48."""
    weight, zero = torch.full((2, 1 << 16), 127, dtype=torch.int8), torch.zeros(2)
    check_accumulator(weight, zero.to(torch.int64), 65535, 65535, 24, "fc7")
    huge = torch.full((2,), 1 << 48)
    with pytest.raises(NumericsError, match=r"more than 49 bits(.|\n)*fc7"):
        check_accumulator(weight, huge, 65535, 65535, 24, "fc7")


@given(SEED, st.integers(-2, 2))
def test_int32_is_chosen_exactly_where_it_holds(seed: int, extra: int) -> None:
    weight = random_weight((3, 5), seed)
    products = weight.long().abs().sum(1) * (1 << 15)
    bias = INT32_MAX - (1 << 23) - products + extra
    assert fits_int32(weight, bias, 1 << 15, 24) == (extra <= 0)
    assert fits_int32(weight, -bias, 1 << 15, 24) == (extra <= 0)
