"""Sums of products over values as they lie in memory: images have their channels innermost.

Training spends more time on passes over values than on their convolutions. A gradient in another
order than its value costs one more pass for every operator that reads both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, without a temporary where both lie alike in memory.

    Args:
        a: Any shape.
        b: Same shape.
    """
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    if a.stride() != b.stride() or not dense:
        return (a * b).sum()
    return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,)))


class _MeanSquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, target: Tensor) -> Tensor:
        difference = value - target
        ctx.save_for_backward(difference)
        return dot(difference, difference) / difference.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2 / difference.numel() * grads[0]), None


def mean_squared_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean of squares of `value - target`.

    The gradient lies in memory as the value does; that of torch's own has its channels outermost.

    Args:
        value: Any shape; the only one with a gradient.
        target: Same shape.
    """
    result = _MeanSquaredError.apply(value, target)
    assert isinstance(result, Tensor)
    return result
