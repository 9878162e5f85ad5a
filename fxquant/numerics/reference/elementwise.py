"""Element by element: requantize, add, mul, concat, table lookup, local response norm.

Operands may have codes of either width; `width` is that of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxquant.numerics.requantize import scale_accumulator, to_codes
from fxquant.numerics.width import width_of, width_of_dtype


def _difference(x: Tensor, zero_point: int) -> Tensor:
    """`x - zero_point`, int32 of uint8 and int64 of uint16 codes."""
    return x.to(width_of_dtype(x.dtype).accumulator) - zero_point


def requantize(
    x: Tensor,
    *,
    zero_point: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """Move codes to another grid."""
    result = width_of(width)
    scaled = scale_accumulator(_difference(x, zero_point), multiplier, shift, result)
    return to_codes(scaled, output_zero_point, qmin, qmax, result)


def add(
    a: Tensor,
    b: Tensor,
    *,
    zero_points: tuple[int, int],
    multipliers: tuple[int, int],
    shifts: tuple[int, int],
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """`a + b`, each operand scaled by its own multiplier; shapes broadcast as in torch."""
    operands = zip((a, b), zero_points, multipliers, shifts, strict=True)
    result = width_of(width)
    u, v = (scale_accumulator(_difference(x, zp), m, s, result) for x, zp, m, s in operands)
    return to_codes(u + v, output_zero_point, qmin, qmax, result)


def mul(
    a: Tensor,
    b: Tensor,
    *,
    zero_points: tuple[int, int],
    multiplier: int,
    shift: int,
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """`a * b`; shapes broadcast as in torch (squeeze-excite: `[N,C,H,W] * [N,C,1,1]`)."""
    acc = _difference(a, zero_points[0]) * _difference(b, zero_points[1])
    scaled = scale_accumulator(acc, multiplier, shift, width_of(width))
    return to_codes(scaled, output_zero_point, qmin, qmax, width_of(width))


def concat(
    tensors: Sequence[Tensor],
    *,
    axis: int,
    zero_points: tuple[int, ...],
    multipliers: tuple[int, ...],
    shifts: tuple[int, ...],
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """Concatenate along `axis`, every operand moved to the output grid."""
    moved = [
        requantize(x, zero_point=zp, multiplier=m, shift=s,
                   output_zero_point=output_zero_point, qmin=qmin, qmax=qmax, width=width)
        for x, zp, m, s in zip(tensors, zero_points, multipliers, shifts, strict=True)
    ]  # fmt: skip
    return torch.cat(moved, axis)


def lookup(x: Tensor, table: Tensor) -> Tensor:
    """`table[x]` for a table of codes `[L]`, or `table[c, x]` for `[C, L]` with c on axis 1.

    L is 256 for uint8 and 65536 for uint16 codes x; the table has the type of the result.
    """
    if table.ndim == 1:
        return table[x.to(torch.int32)]
    shape = [1] * x.ndim
    shape[1] = -1
    channel = torch.arange(table.shape[0], device=x.device).reshape(shape)
    return table[channel.expand_as(x), x.to(torch.int32)]


def local_response_norm(
    x: Tensor,
    *,
    size: int,
    zero_point: int,
    offset: float,
    factor: float,
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """Local response normalization over channels with beta = 3/4, exact on every IEEE machine.

    `y = x / (k + alpha/size * sum x^2)^(3/4)`. With `a = code - zero_point`, input scale s and
    `e = sum a^2` (an exact integer): `y/s_y = a / ((offset + e)^(3/4)) * factor`, where
    `offset = k*size/(alpha*s^2)`. Float32 operations in this order, none of which a compiler may
    contract: add, sqrt, sqrt, mul, div, mul, round half even.

    Args:
        x: Codes `[N, C, H, W]`.
        size: Channels in the window: `c - size//2 .. c + (size-1)//2`, as in torch.
        zero_point: Zero point of `x`.
        offset: float32 value, see above.
        factor: float32 value `s / s_y * (alpha*s^2/size)^(-3/4)`.
        output_zero_point: Zero point of the result.
        qmin: Lower clip.
        qmax: Upper clip.
        width: Width of the result: 8 or 16.
    """
    a = _difference(x, zero_point)
    squares = torch.nn.functional.pad(a * a, (0, 0, 0, 0, size // 2, (size - 1) // 2))
    energy = squares.unfold(1, size, 1).sum(-1)
    z = energy.to(torch.float32) + torch.tensor(offset, dtype=torch.float32)
    root = _sqrt(z)
    real = a.to(torch.float32) / (root * _sqrt(root))
    real = torch.round(real * torch.tensor(factor, dtype=torch.float32))
    codes = real.clamp(-65536.0, 65536.0).to(torch.int32) + output_zero_point
    return codes.clamp(qmin, qmax).to(width_of(width).codes)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded float32 root: torch's own may come from a library that is off by one ulp.

    A root in float64 is never so near to a tie of float32 that its error matters.
    """
    return torch.sqrt(x.double()).to(torch.float32)
