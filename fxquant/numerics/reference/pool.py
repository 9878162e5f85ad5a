"""Pooling and bilinear resize on codes.

A pooling window along one axis is a tuple `(start, stop, step)`: the input indices
`range(start, stop, step)`, already clipped to the tensor. One tuple an output index covers
strides, padding, ceil mode, dilation and adaptive pooling alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.numerics.requantize import scale_accumulator, to_codes
from fxquant.numerics.width import Width, width_of, width_of_dtype

Windows = tuple[tuple[int, int, int], ...]


def resize_bits(width: Width) -> int:
    """Fractional bits of interpolation weights: finer than the codes they interpolate."""
    return width.bits + 2


def max_pool2d(x: Tensor, *, rows: Windows, cols: Windows) -> Tensor:
    """Largest value a window, `[N, C, len(rows), len(cols)]`; works on codes and on floats."""
    values = x.to(torch.int32) if x.dtype == torch.uint16 else x  # torch compares no uint16
    by_col = torch.stack([values[..., slice(*w)].amax(-1) for w in cols], -1)
    return torch.stack([by_col[:, :, slice(*w), :].amax(-2) for w in rows], -2).to(x.dtype)


def avg_pool2d_accumulate(x: Tensor, *, rows: Windows, cols: Windows, zero_point: int) -> Tensor:
    """Sums of `x - zero_point` over each window: int32, or int64 of uint16 codes."""
    real = x.to(torch.int32) - zero_point
    by_col = torch.stack([real[..., slice(*w)].sum(-1) for w in cols], -1)
    sums = torch.stack([by_col[:, :, slice(*w), :].sum(-2) for w in rows], -2)
    return sums.to(width_of_dtype(x.dtype).accumulator)


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
    width: int = 8,
) -> Tensor:
    """Average pooling; the divisor is inside the multiplier.

    Args:
        x: Codes `[N, C, H, W]`.
        multiplier: `[OH, OW]`.
        shift: int8 `[OH, OW]`.
        rows: Windows along H.
        cols: Windows along W.
        zero_point: Zero point of `x`.
        output_zero_point: Zero point of the result.
        qmin: Lower clip.
        qmax: Upper clip.
        width: Width of the result: 8 or 16.
    """
    acc = avg_pool2d_accumulate(x, rows=rows, cols=cols, zero_point=zero_point)
    result = width_of(width)
    scaled = scale_accumulator(acc, multiplier, shift, result)
    return to_codes(scaled, output_zero_point, qmin, qmax, result)


def resize_linear2d(
    x: Tensor,
    *,
    rows: tuple[tuple[int, int, int], ...],
    cols: tuple[tuple[int, int, int], ...],
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Bilinear resize on the same grid, interpolation weights in units of 2^-b.

    b = 10 for uint8 and 18 for uint16 codes (`resize_bits`).

    Args:
        x: Codes `[N, C, H, W]`.
        rows: For each output row `(i0, i1, w1)`: `((2^b - w1)*x[i0] + w1*x[i1]) / 2^b`.
        cols: The same along W.
        zero_point: Zero point of input and output.
        qmin: Lower clip.
        qmax: Upper clip.
    """
    width = width_of_dtype(x.dtype)
    bits = resize_bits(width)
    one = 1 << bits
    i0, i1, wi = torch.tensor(rows, dtype=torch.int64, device=x.device).unbind(1)
    j0, j1, wj = torch.tensor(cols, dtype=torch.int64, device=x.device).unbind(1)
    real = x.to(torch.int64) - zero_point
    wi = wi.reshape(-1, 1)
    vertical = real[:, :, i0] * (one - wi) + real[:, :, i1] * wi
    acc = vertical[..., j0] * (one - wj) + vertical[..., j1] * wj
    multiplier, shift = 1 << (width.multiplier_bits - 1), 2 * bits - 1 - width.fraction_bits
    scaled = scale_accumulator(acc, multiplier, shift, width)  # real multiplier 2^-2b
    return to_codes(scaled, zero_point, qmin, qmax, width)
