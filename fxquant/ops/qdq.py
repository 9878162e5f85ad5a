"""Quantize and dequantize nodes of the QDQ graph: float carriers of integer codes.

Codes travel as float32 so that gradients pass: straight through the rounding, zero where the
value was clipped. `quantize` divides and rounds half to even, exactly as the integer graph does
at the network input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RoundClip(torch.autograd.Function):
    """`clip(round_half_even(x), low, high)`; the gradient is 1 inside the range and 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        rounded = torch.round(x)
        ctx.save_for_backward((rounded >= low) & (rounded <= high))
        return rounded.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def quantize(x: Tensor, *, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """float -> codes in float32, per tensor."""
    ratio = x / torch.tensor(scale, dtype=x.dtype, device=x.device)
    codes = _RoundClip.apply(ratio, float(qmin - zero_point), float(qmax - zero_point))
    assert isinstance(codes, Tensor)
    return codes + zero_point


def dequantize(codes: Tensor, *, scale: float, zero_point: int) -> Tensor:
    """Codes in float32 -> float, per tensor."""
    return (codes - zero_point) * torch.tensor(scale, dtype=codes.dtype, device=codes.device)


def dequantize_weight(codes: Tensor, scale: Tensor) -> Tensor:
    """int8 codes `[O, ...]` and scale `[O]` -> float32 weight."""
    return codes.to(torch.float32) * scale.reshape([-1] + [1] * (codes.ndim - 1))
