"""Pooling and bilinear resize on codes.

A pooling window along one axis is a tuple `(start, stop, step)`: the input indices
`range(start, stop, step)`, already clipped to the tensor. One tuple an output index covers
strides, padding, ceil mode, dilation and adaptive pooling alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.numerics.requantize import scale_accumulator, to_codes

Windows = tuple[tuple[int, int, int], ...]
RESIZE_BITS = 10


def max_pool2d(x: Tensor, *, rows: Windows, cols: Windows) -> Tensor:
    """Largest value a window, `[N, C, len(rows), len(cols)]`; works on codes and on floats."""
    by_col = torch.stack([x[..., slice(*w)].amax(-1) for w in cols], -1)
    return torch.stack([by_col[:, :, slice(*w), :].amax(-2) for w in rows], -2)


def avg_pool2d_accumulate(x: Tensor, *, rows: Windows, cols: Windows, zero_point: int) -> Tensor:
    """int32 sums of `x - zero_point` over each window."""
    real = x.to(torch.int32) - zero_point
    by_col = torch.stack([real[..., slice(*w)].sum(-1) for w in cols], -1)
    sums = torch.stack([by_col[:, :, slice(*w), :].sum(-2) for w in rows], -2)
    return sums.to(torch.int32)


def avg_pool2d(
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    *,
    rows: Windows,
    cols: Windows,
    zero_point: int,
    output_zero_point: int,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Average pooling; the divisor is inside the multiplier.

    Args:
        x: uint8 `[N, C, H, W]`.
        multiplier: int16 `[OH, OW]`.
        shift: int8 `[OH, OW]`.
        rows: Windows along H.
        cols: Windows along W.
        zero_point: Zero point of `x`.
        output_zero_point: Zero point of the result.
        qmin: Lower clip.
        qmax: Upper clip.
    """
    acc = avg_pool2d_accumulate(x, rows=rows, cols=cols, zero_point=zero_point)
    scaled = scale_accumulator(acc.to(torch.int64), multiplier, shift)
    return to_codes(scaled, output_zero_point, qmin, qmax)


def resize_linear2d(
    x: Tensor,
    *,
    rows: tuple[tuple[int, int, int], ...],
    cols: tuple[tuple[int, int, int], ...],
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Bilinear resize on the same grid, interpolation weights in units of 2^-10.

    Args:
        x: uint8 `[N, C, H, W]`.
        rows: For each output row `(i0, i1, w1)`: `((1024-w1)*x[i0] + w1*x[i1]) / 1024`.
        cols: The same along W.
        zero_point: Zero point of input and output.
        qmin: Lower clip.
        qmax: Upper clip.
    """
    one = 1 << RESIZE_BITS
    i0, i1, wi = torch.tensor(rows, dtype=torch.int64, device=x.device).unbind(1)
    j0, j1, wj = torch.tensor(cols, dtype=torch.int64, device=x.device).unbind(1)
    real = x.to(torch.int64) - zero_point
    wi = wi.reshape(-1, 1)
    vertical = real[:, :, i0] * (one - wi) + real[:, :, i1] * wi
    acc = vertical[..., j0] * (one - wj) + vertical[..., j1] * wj
    scaled = scale_accumulator(acc, 1 << 14, 2 * RESIZE_BITS - 7)  # real multiplier 2^-20
    return to_codes(scaled, zero_point, qmin, qmax)
