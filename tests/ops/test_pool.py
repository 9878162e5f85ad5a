"""Pooling and resizing on integers against torch, windows worked out by the frontend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from fxquant.ir.frontend.handlers.pool import _linear, adaptive_windows, windows
from fxquant.ops.pool import avg_pool2d, max_pool2d, resize_linear2d
from tests.ops.harness import Value, check, check_float_output, run_integer, value
from tests.tolerance import assert_same, assert_within_lsb


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool):
    """torch's output size."""
    plane = torch.zeros(1, 1, size, 1)
    return F.max_pool2d(
        plane, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil_mode=ceil
    ).shape[2]


@st.composite
def pooling(draw: st.DrawFn) -> dict:
    """Valid pooling arguments of one axis."""
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding, dilation = draw(st.integers(0, kernel // 2)), draw(st.integers(1, 2))
    size = draw(st.integers(1, 9))
    assume(size + 2 * padding >= dilation * (kernel - 1) + 1)
    taps = [-padding + t * dilation for t in range(kernel)]
    assume(any(0 <= t < size for t in taps))
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation,
            "size": size, "ceil": draw(st.booleans())}  # fmt: skip


@given(pooling())
def test_max_pool_windows(p: dict) -> None:
    out = pooled_size(p["size"], p["kernel"], p["stride"], p["padding"], p["dilation"], p["ceil"])
    rows, _ = windows(p["size"], out, p["kernel"], p["stride"], p["padding"], p["dilation"])
    x = value((2, 3, p["size"], 4))
    cols, _ = windows(4, 4, 1, 1, 0, 1)
    codes = run_integer(max_pool2d, {"x": x}, x.grid, 4, rows=rows, cols=cols)
    expected = F.max_pool2d(
        x.codes.float(), (p["kernel"], 1), (p["stride"], 1), (p["padding"], 0),
        (p["dilation"], 1), ceil_mode=p["ceil"],
    )  # fmt: skip
    assert_same(codes, expected.to(torch.uint8))


@given(pooling(), st.booleans())
def test_avg_pool_windows(p: dict, include: bool) -> None:
    assume(p["dilation"] == 1)
    x = value((2, 3, p["size"], 5), zero_point=60)
    expected = F.avg_pool2d(
        x.real, (p["kernel"], 2), (p["stride"], 1), (p["padding"], 0), p["ceil"], include
    )
    axes = ((p["size"], expected.shape[2], p["kernel"], p["stride"], p["padding"]),
            (5, expected.shape[3], 2, 1, 0))  # fmt: skip
    (rows, row_counts), (cols, col_counts) = (windows(*axis, 1) for axis in axes)
    if not include:
        row_counts = tuple(len(range(*w)) for w in rows)
        col_counts = tuple(len(range(*w)) for w in cols)
    kwargs = {"rows": rows, "cols": cols, "row_counts": row_counts, "col_counts": col_counts}
    check(avg_pool2d, {"x": x}, expected, fraction=0.1, **kwargs)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (9, 5)])
@pytest.mark.parametrize("out", [(1, 1), (2, 3), (7, 7)])
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_adaptive_avg_pool(size, out, zero_point: int) -> None:
    x = value((2, 5, *size), zero_point=zero_point)
    rows, cols = (adaptive_windows(s, o) for s, o in zip(size, out, strict=True))
    counts = [tuple(len(range(*w)) for w in axis) for axis in (rows, cols)]
    kwargs = {"rows": rows, "cols": cols, "row_counts": counts[0], "col_counts": counts[1]}
    expected = F.adaptive_avg_pool2d(x.real, out)
    check(avg_pool2d, {"x": x}, expected, fraction=0.1, **kwargs)
    if out == (1, 1):
        check_float_output(avg_pool2d, {"x": x}, expected, **kwargs)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("out", [(1, 1), (5, 7), (10, 6), (13, 21)])
def test_bilinear_resize(align: bool, out: tuple[int, int]) -> None:
    """Interpolation weights have 10 bits: 1 LSB, on the input's own grid."""
    x = value((2, 3, 5, 7), zero_point=77)
    rows, cols = (_linear(s, o, None, align) for s, o in zip((5, 7), out, strict=True))
    codes = run_integer(resize_linear2d, {"x": x}, x.grid, 4, rows=rows, cols=cols)
    real = F.interpolate(x.real, out, mode="bilinear", align_corners=align)
    expected = torch.round(real / x.grid.scale) + x.grid.zero_point
    assert_within_lsb(codes, expected, 1, 0.25, "resize")


def test_resize_of_a_constant_is_the_constant() -> None:
    rows = tuple((i // 2, min(i // 2 + 1, 4), 0.3) for i in range(10))
    for code in (0, 1, 128, 255):
        codes = torch.full((1, 2, 5, 5), code, dtype=torch.uint8)
        x = Value(codes, value((1,)).grid)
        out = run_integer(resize_linear2d, {"x": x}, x.grid, 4, rows=rows, cols=rows)
        assert bool((out == code).all())
