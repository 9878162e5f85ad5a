"""Rounding with gradients: what training sees of the integer grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.solvers.squared_error import dot


class _FakeQuantize(torch.autograd.Function):
    """`scale * clip(round(x / scale), low, high)` with the gradients of LSQ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        y = (x / scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, y, scale)
        ctx.bounds = low, high
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad,) = grads
        x, y, scale = ctx.saved_tensors
        low, high = (
            (bound + edge) * float(scale)
            for bound, edge in zip(ctx.bounds, (-0.5, 0.5), strict=True)
        )
        to_x = torch.ops.aten.hardtanh_backward(grad, x, low, high)  # one pass: 0 outside
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None
        to_scale = (dot(grad, y) - dot(to_x, x)) / scale
        return to_x, to_scale.reshape(scale.shape), None, None


def fake_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """A value on its grid.

    Gradient of x: 1 inside the range, 0 where clipped. Gradient of the scale, with `r = x / scale`:
    `round(r) - r` inside, the clipped code outside.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3 and 5.

    Args:
        x: Any shape.
        scale: `[]`.
        low: Smallest code minus zero point.
        high: Largest code minus zero point.
    """
    result = _FakeQuantize.apply(x, scale, float(low), float(high))
    assert isinstance(result, Tensor)
    return result


class _RoundThrough(torch.autograd.Function):
    """`clip(round(x), low, high)`; the gradient is 1 inside the range and 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x >= low - 0.5) & (x <= high + 0.5))
        return x.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def round_through(x: Tensor, low: int, high: int) -> Tensor:
    """Nearest code with a straight-through gradient (Bengio et al., 2013)."""
    result = _RoundThrough.apply(x, float(low), float(high))
    assert isinstance(result, Tensor)
    return result
