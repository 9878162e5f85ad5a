"""Clamps of fused activations, on real values."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

Clamp = tuple[float | None, float | None]


class _ClampInPlace(torch.autograd.Function):
    """Gradient 1 inside and 0 on the bounds and outside; torch's own keeps a copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.mark_dirty(x.clamp_(low, high))
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], result, *ctx.bounds), None, None


def apply_clamp(x: Tensor, clamp: Clamp | None) -> Tensor:
    """Clamp in real values; None bounds are open.

    Args:
        x: A result nobody else has: changed in place.
        clamp: The bounds.
    """
    if clamp is None or clamp == (None, None):
        return x
    if not x.requires_grad:
        return x.clamp_(*clamp)
    low, high = clamp
    result = _ClampInPlace.apply(x, -inf if low is None else low, inf if high is None else high)
    assert isinstance(result, Tensor)
    return result
