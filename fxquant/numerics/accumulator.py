"""Proof that accumulators neither overflow nor saturate: bounds from the actual codes."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import NumericsError
from fxquant.numerics.width import width_of

INT32_MAX = (1 << 31) - 1


def weight_magnitudes(weight: Tensor) -> Tensor:
    """`sum |w|` of every output channel, int64 `[O]`, of integer codes `[O, ...]`."""
    return weight.to(torch.int64).abs().flatten(1).sum(1)


def accumulator_bound(weight: Tensor, bias: Tensor, zero_point: int, qmax: int) -> int:
    """Largest magnitude a convolution's or linear layer's accumulator can take.

    Kernels that store activations with another offset than the zero point sum `code * weight`
    and correct with the bias, so the bound holds for `code` and for `code - zero_point`, in
    every order of summation.

    Args:
        weight: Integer codes, output channel first, `[O, ...]`.
        bias: `[O]`.
        zero_point: Input zero point.
        qmax: Largest input code (smallest is 0).

    Returns:
        max over channels of `sum |w| * largest |activation| + |bias| + correction`.
    """
    magnitude = weight_magnitudes(weight)
    offset = 1 << (width_of(qmax.bit_length()).bits - 1)  # of storage as signed codes
    largest = max(qmax, offset)
    correction = magnitude * max(zero_point, offset)
    return int((magnitude * largest + bias.to(torch.int64).abs() + correction).max())


def fits_int32(weight: Tensor, bias: Tensor, largest: int, max_shift: int) -> bool:
    """Whether `bias + sum x * w` and its rounding provably stay in int32, in every order.

    Args:
        weight: Integer codes, output channel first, `[O, ...]`.
        bias: `[O]`, the zero point of `x` folded in.
        largest: Largest magnitude of `x` as it is multiplied.
        max_shift: Largest right shift of the requantization that follows.
    """
    magnitude = weight_magnitudes(weight)
    bound = int((magnitude * largest + bias.to(torch.int64).abs()).max())
    return bound + (1 << max(max_shift - 1, 0)) <= INT32_MAX


def check_accumulator(
    weight: Tensor, bias: Tensor, zero_point: int, qmax: int, max_shift: int, where: str
) -> None:
    """Raise unless `acc + 2^(shift-1)` provably fits the type of accumulators.

    That is int32 for 8-bit input codes and 49 bits of an int64 for 16-bit ones.

    Raises:
        NumericsError: The bound exceeds it; names the tensor.
    """
    rounding = 1 << max(max_shift - 1, 0)
    bound = accumulator_bound(weight, bias, zero_point, qmax) + rounding
    limit = width_of(qmax.bit_length()).largest_accumulator
    if bound > limit:
        held = "int32" if limit == INT32_MAX else f"{limit.bit_length() + 1} bits"
        raise NumericsError(
            f"accumulator can reach {bound}, more than {held} holds",
            where=where,
            why="the reduction is too long or the bias too large for its scale",
            remedy="use fewer weight bits for this layer, or leave it in float",
        )
