"""Proof that accumulators neither overflow int32 nor saturate: bounds from the actual codes."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import NumericsError

INT32_MAX = (1 << 31) - 1


def accumulator_bound(weight: Tensor, bias: Tensor, zero_point: int, qmax: int) -> int:
    """Largest magnitude a convolution's or linear layer's accumulator can take.

    Kernels that store activations with another offset than the zero point sum `code * weight`
    and correct with the bias, so the bound holds for `code` and for `code - zero_point`, in
    every order of summation.

    Args:
        weight: Integer codes, output channel first, `[O, ...]`.
        bias: int32 `[O]`.
        zero_point: Input zero point.
        qmax: Largest input code (smallest is 0).

    Returns:
        max over channels of `sum |w| * largest |activation| + |bias| + correction`.
    """
    magnitude = weight.to(torch.int64).abs().flatten(1).sum(1)  # [O]
    largest = max(qmax, 128)
    correction = magnitude * max(zero_point, 128)
    return int((magnitude * largest + bias.to(torch.int64).abs() + correction).max())


def check_accumulator(
    weight: Tensor, bias: Tensor, zero_point: int, qmax: int, max_shift: int, where: str
) -> None:
    """Raise unless `acc + 2^(shift-1)` provably fits int32.

    Raises:
        NumericsError: The bound exceeds int32; names the tensor.
    """
    rounding = 1 << max(max_shift - 1, 0)
    bound = accumulator_bound(weight, bias, zero_point, qmax) + rounding
    if bound > INT32_MAX:
        raise NumericsError(
            f"accumulator can reach {bound}, more than int32 holds",
            where=where,
            why="the reduction is too long or the bias too large for its scale",
            remedy="use fewer weight bits for this layer, or leave it in float",
        )
