"""Quantize and dequantize at the network's edges, and their twins in the QDQ graph."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.numerics import reference
from fxquant.numerics.width import width_of
from fxquant.ops import qdq
from tests.strategies import BITS
from tests.tolerance import assert_same

scales = st.floats(2.0**-60, 2.0**60, width=32)
CODE_BITS = st.one_of(BITS, st.just(16))
values = st.floats(-(2.0**80), 2.0**80, width=32)


@given(values, scales, CODE_BITS, st.integers(0, 65535))
def test_quantize_equals_float32_division_then_half_even(
    x: float, scale: float, bits: int, zero_point: int
) -> None:
    qmax = (1 << bits) - 1
    zero_point = min(zero_point, qmax)
    with np.errstate(over="ignore"):
        ratio = float(np.float32(x) / np.float32(scale))
    bounded = Fraction(max(-1e6, min(1e6, ratio)))  # an infinite ratio saturates
    expected = max(0, min(qmax, round(bounded) + zero_point))  # Fractions round half to even
    width = {"width": 16} if bits == 16 else {}
    grid = {"scale": scale, "zero_point": zero_point, "qmin": 0, "qmax": qmax, **width}
    assert int(reference.quantize(torch.tensor([x]), **grid)) == expected


@given(st.lists(values, min_size=1, max_size=9), scales, CODE_BITS, st.integers(0, 65535))
def test_qdq_quantize_equals_integer_quantize(
    x: list[float], scale: float, bits: int, zero_point: int
) -> None:
    qmax = (1 << bits) - 1
    grid = {"scale": scale, "zero_point": min(zero_point, qmax), "qmin": 0, "qmax": qmax}
    tensor = torch.tensor(x)
    simulated = qdq.quantize(tensor, **grid)
    integer = reference.quantize(tensor, **grid, width=width_of(bits).bits)
    assert_same(simulated.to(width_of(bits).codes), integer)
    back = {"scale": scale, "zero_point": grid["zero_point"]}
    assert_same(qdq.dequantize(simulated, **back), reference.dequantize(integer, **back))


@pytest.mark.parametrize("quantize", [reference.quantize, qdq.quantize])
def test_quantize_ties_go_to_even(quantize) -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    codes = quantize(x, scale=1.0, zero_point=10, qmin=0, qmax=255)
    assert codes.tolist() == [10, 12, 12, 10, 8]


def test_quantize_of_non_finite_values() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38, -3e38])
    codes = reference.quantize(x, scale=1e-3, zero_point=7, qmin=0, qmax=255)
    assert codes.tolist() == [7, 255, 0, 255, 0]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_quantize_of_dequantize_is_the_identity(zero_point: int, bits: int) -> None:
    top, zero_point = (1 << bits) - 1, zero_point << (bits - 8)
    codes = torch.arange(top + 1, dtype=torch.int32).to(width_of(bits).codes)
    for scale in (1e-30, 0.017, 1 / 3, 1e10):
        real = reference.dequantize(codes, scale=scale, zero_point=zero_point)
        grid = {"scale": scale, "zero_point": zero_point, "qmin": 0, "qmax": top, "width": bits}
        again = reference.quantize(real, **grid)
        assert_same(again, codes)


def test_dequantize_accumulator_scales_along_the_axis_and_clamps() -> None:
    acc = torch.arange(-6, 6, dtype=torch.int32).reshape(1, 3, 4)
    scale = torch.tensor([1.0, 0.5, 0.25])
    real = reference.dequantize_accumulator(acc, scale, axis=1, lower=-2.0, upper=0.75)
    assert torch.equal(real, (acc * scale[None, :, None]).clamp(-2.0, 0.75))
    plain = reference.dequantize_accumulator(acc, scale, axis=1, lower=None, upper=None)
    assert torch.equal(plain, acc * scale[None, :, None])


def test_wide_accumulators_become_floats_with_one_rounding() -> None:
    """Ties between float32 values at 2^24 and at 2^40 go to even."""
    acc = torch.tensor([(1 << 24) + 1, (1 << 24) + 3, (1 << 40) + (1 << 16), -(1 << 40) - 1])
    real = reference.dequantize_accumulator(acc, torch.ones(1), axis=0, lower=None, upper=None)
    assert real.tolist() == [float(np.float32(v)) for v in acc.tolist()]


def test_gradient_passes_inside_and_stops_where_clipped() -> None:
    x = torch.tensor([-5.0, -0.2, 0.3, 9.0], requires_grad=True)
    codes = qdq.quantize(x, scale=0.1, zero_point=10, qmin=0, qmax=60)
    qdq.dequantize(codes, scale=0.1, zero_point=10).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_dequantize_weight_is_per_output_channel() -> None:
    codes = torch.tensor([[[1]], [[-2]]], dtype=torch.int8)
    real = qdq.dequantize_weight(codes, torch.tensor([0.5, 3.0]))
    assert real.flatten().tolist() == [0.5, -6.0]
