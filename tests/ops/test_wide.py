"""Operators on 16-bit codes, alone and mixed with 8-bit ones, against float64 torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxquant.errors import NumericsError
from fxquant.ir.frontend.handlers.pool import _linear, adaptive_windows
from fxquant.numerics import reference
from fxquant.ops.arithmetic import add, concat, mul
from fxquant.ops.conv import conv2d, conv_transpose2d, linear
from fxquant.ops.elementwise import FUNCTIONS, power, prelu
from fxquant.ops.opdef import Operand
from fxquant.ops.pool import avg_pool2d, local_response_norm, max_pool2d, resize_linear2d
from tests.ops.harness import (
    bias_on_grid,
    check,
    check_float_output,
    grid_for,
    quantized,
    real_weight,
    run_integer,
    value,
    weight,
)
from tests.ops.test_conv import conv_case, expected_conv
from tests.ops.test_elementwise import ARGUMENTS, all_codes
from tests.tolerance import assert_same, assert_within_lsb

# Bits of the operand and of the result, at least one of them 16.
each_pair = pytest.mark.parametrize(("bits", "width"), [(16, 16), (16, 8), (8, 16), (16, 4)])


@each_pair
@pytest.mark.parametrize("weight_bits", [2, 5, 8])
@pytest.mark.parametrize("name", ["same", "strided", "depthwise", "grouped"])
def test_conv2d(name: str, bits: int, width: int, weight_bits: int) -> None:
    kwargs, x, w = conv_case(name)
    x = value(tuple(x.codes.shape), bits=bits, zero_point=(1 << bits) // 3)
    w = weight(tuple(w.codes.shape), bits=weight_bits)
    bias = bias_on_grid(x, w, 3.0)
    expected = expected_conv(x.real, real_weight(w), bias, kwargs)
    check(conv2d, {"x": x}, expected, bits=width, weight=w, bias=bias, **kwargs)
    check_float_output(conv2d, {"x": x}, expected, weight=w, bias=bias, **kwargs)


@pytest.mark.parametrize(
    ("bits", "residual_bits", "width"),
    [(16, 16, 16), (8, 16, 8), (16, 8, 16), (8, 8, 16), (16, 16, 8)],
)
@pytest.mark.parametrize("clamp", [None, (0.0, 2.0)])
def test_conv2d_residual(bits: int, residual_bits: int, width: int, clamp) -> None:
    kwargs, x, w = conv_case("same")
    x = value(tuple(x.codes.shape), bits=bits)
    plain = expected_conv(x.real, real_weight(w), None, kwargs)
    span = float(plain.abs().max())
    residual = value(tuple(plain.shape), 7, 31, residual_bits, span)
    total = plain + residual.real
    expected = total if clamp is None else total.clamp(*clamp)
    operands, grid = {"x": x, "residual": residual}, grid_for(total, width)
    check(conv2d, operands, expected, weight=w, fraction=0.08, grid=grid, clamp=clamp, **kwargs)


@each_pair
def test_linear_and_transposed(bits: int, width: int) -> None:
    x, w = value((4, 65), bits=bits), weight((5, 65))
    bias = bias_on_grid(x, w, 1.0)
    expected = F.linear(x.real, real_weight(w), bias)
    check(linear, {"x": x}, expected, bits=width, weight=w, bias=bias)
    x, w = value((2, 4, 5, 6), bits=bits), weight((6, 4, 3, 3))
    kwargs = {"stride": (2, 2), "padding": (1, 2, 1, 2), "dilation": (1, 1), "groups": 1}
    original = real_weight(w).transpose(0, 1).flip(2, 3)
    expected = F.conv_transpose2d(x.real, original, None, 2, 1, 1)
    check(conv_transpose2d, {"x": x}, expected, bits=width, weight=w, **kwargs)


def test_linear_beyond_int32() -> None:
    """Accumulators of extreme codes leave int32 and stay exact."""
    x, w = value((2, 600), bits=16, zero_point=0), weight((3, 600))
    x.codes[:] = torch.tensor(65535, dtype=torch.int32).to(torch.uint16)
    w.codes[:] = 127
    expected = F.linear(x.real, real_weight(w))
    check_float_output(linear, {"x": x}, expected, weight=w)
    check(linear, {"x": x}, expected, bits=16, weight=w)


@each_pair
def test_table_equals_quantized_function(bits: int, width: int) -> None:
    """For all codes: the table IS the float function, rounded once."""
    x = all_codes(bits, (1 << bits) // 2)
    for function in FUNCTIONS:
        for arguments in ARGUMENTS.get(function, [{}]):
            expected = function(x.real, **arguments)
            grid = grid_for(expected, width)
            codes = run_integer(function, {"x": x}, grid, 1, **arguments)
            assert_same(codes, quantized(expected, grid).to(grid.width.codes), function.__name__)


def test_table_of_a_pole_and_of_channels() -> None:
    x, grid = all_codes(16, 1 << 15), Operand(0.001, 20, 0, 65535)
    inverse = run_integer(power, {"x": x}, grid, 1, exponent=-1.0)
    assert int(inverse[1 << 15]) == 65535
    slope = torch.tensor([0.25, -1.5, 0.0])
    x = value((2, 3, 5, 5), bits=16, zero_point=30000)
    expected = F.prelu(x.real, slope.double())
    check(prelu, {"x": x}, expected, bits=16, slope=slope)


@pytest.mark.parametrize(("a", "b", "width"), [(16, 16, 16), (8, 16, 16), (16, 8, 8), (8, 8, 16)])
def test_add_mul_concat(a: int, b: int, width: int) -> None:
    x, y = value((3, 17), 1, 40, a), value((3, 17), 2, 200, b, 9.0)
    operands = {"a": x, "b": y}
    check(add, operands, x.real + y.real, bits=width, fraction=0.1)
    check(mul, operands, x.real * y.real, bits=width)
    joined = torch.cat([x.real, y.real], 1)
    check(concat, {"tensors": (x, y)}, joined, bits=width, axis=1)


def test_sums_need_headroom_at_either_width() -> None:
    """An operand far coarser than the grid of the sum is refused; a fitting one is exact."""
    for bits in (8, 16):
        for width in (8, 16):
            x = value((3, 17), bits=bits)
            limit = x.grid.scale / grid_for(x.real, width).width.largest_ratio(x.grid.span)
            top = (1 << width) - 1
            with pytest.raises(NumericsError, match="too fine"):
                run_integer(add, {"a": x, "b": x}, Operand(limit * 0.99, 0, 0, top), 2)
            run_integer(add, {"a": x, "b": x}, Operand(limit * 1.01, 0, 0, top), 2)


@each_pair
def test_pools(bits: int, width: int) -> None:
    x = value((2, 5, 9, 7), bits=bits, zero_point=(1 << bits) // 3)
    for out in ((1, 1), (2, 3)):
        rows, cols = (adaptive_windows(s, o) for s, o in zip((9, 7), out, strict=True))
        counts = [tuple(len(range(*w)) for w in axis) for axis in (rows, cols)]
        kwargs = {"rows": rows, "cols": cols, "row_counts": counts[0], "col_counts": counts[1]}
        expected = F.adaptive_avg_pool2d(x.real, out)
        check(avg_pool2d, {"x": x}, expected, bits=width, fraction=0.1, **kwargs)
        largest = run_integer(max_pool2d, {"x": x}, x.grid, 4, rows=rows, cols=cols)
        assert torch.equal(largest.double(), F.adaptive_max_pool2d(x.codes.double(), out))


def test_bilinear_resize() -> None:
    """Interpolation weights have 18 bits: 1 LSB of 16 bits."""
    x = value((2, 3, 5, 7), zero_point=20077, bits=16)
    for out, align in (((10, 6), False), ((13, 21), True)):
        rows, cols = (_linear(s, o, None, align) for s, o in zip((5, 7), out, strict=True))
        codes = run_integer(resize_linear2d, {"x": x}, x.grid, 4, rows=rows, cols=cols)
        real = F.interpolate(x.real, out, mode="bilinear", align_corners=align)
        expected = torch.round(real / x.grid.scale) + x.grid.zero_point
        assert_within_lsb(codes, expected, 1, 0.5, "resize")


@each_pair
def test_local_response_norm(bits: int, width: int) -> None:
    x = value((2, 7, 5, 5), bits=bits, zero_point=(1 << bits) // 2)
    arguments = {"size": 5, "alpha": 0.5, "beta": 0.75, "k": 2.0}
    expected = F.local_response_norm(x.real, **arguments)
    check(local_response_norm, {"x": x}, expected, bits=width, **arguments)


def test_roots_are_correctly_rounded() -> None:
    """The reference operator's roots are those of IEEE, whatever library torch calls."""
    import numpy as np

    from fxquant.numerics.reference.elementwise import _sqrt

    x = torch.rand(20000, generator=torch.Generator().manual_seed(0)) * 1e10
    assert np.array_equal(_sqrt(x).numpy(), np.sqrt(x.numpy()))


def test_moving_operators_keep_wide_codes() -> None:
    x = value((2, 6, 5, 7), bits=16).codes
    wide = x.to(torch.int64)
    assert torch.equal(reference.permute(x, dims=(0, 2, 3, 1)).to(torch.int64),
                       wide.permute(0, 2, 3, 1))  # fmt: skip
    padded = reference.pad(x, pads=((0, 0), (0, 0), (1, 0), (0, 2)), value=60000)
    assert padded.dtype == torch.uint16
    assert torch.equal(padded.to(torch.int64), F.pad(wide, (0, 2, 1, 0), value=60000))
    shuffled = reference.channel_shuffle(x, groups=2)
    assert torch.equal(shuffled.to(torch.int64), F.channel_shuffle(wide, 2))
    picked = reference.gather2d(x, rows=(4, 0, 0), cols=(6, 1))
    assert torch.equal(picked.to(torch.int64), wide[:, :, [4, 0, 0]][..., [6, 1]])
