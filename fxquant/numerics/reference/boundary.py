"""The only float arithmetic of a fully quantized net: its input and its output."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.numerics.width import width_of


def quantize(
    x: Tensor, *, scale: float, zero_point: int, qmin: int, qmax: int, width: int = 8
) -> Tensor:
    """float32 -> codes: `clip(round_half_even(x / scale) + zero_point)`, one f32 division.

    NaN becomes the zero point; infinities saturate. Codes are uint8, or uint16 at width 16.
    """
    ratio = torch.round(x.to(torch.float32) / torch.tensor(scale, dtype=torch.float32))
    ratio = torch.nan_to_num(ratio, nan=0.0).clamp(-65536.0, 65536.0)
    return (ratio.to(torch.int32) + zero_point).clamp(qmin, qmax).to(width_of(width).codes)


def dequantize(x: Tensor, *, scale: float, zero_point: int) -> Tensor:
    """Codes -> float32: `float32(code - zero_point) * scale`, one f32 product."""
    real = (x.to(torch.int32) - zero_point).to(torch.float32)
    return real * torch.tensor(scale, dtype=torch.float32)


def dequantize_accumulator(
    acc: Tensor, scale: Tensor, *, axis: int, lower: float | None, upper: float | None
) -> Tensor:
    """Accumulators -> float32 (one rounding) -> outputs, then the fused clamp in float.

    Args:
        acc: int32 or int64 accumulators, below 2^53.
        scale: float32 `[C]` along `axis`, or `[1]` for all.
        axis: Channel axis of `acc`.
        lower: Lower clamp or None.
        upper: Upper clamp or None.
    """
    shape = [1] * acc.ndim
    shape[axis] = -1
    real = acc.to(torch.float32) * scale.reshape(shape)
    return real if lower is None and upper is None else real.clamp(lower, upper)
