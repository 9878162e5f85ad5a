"""THE grid search for weight scales, and the floor that keeps biases and multipliers in range."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.numerics.requantize import SMALLEST_MULTIPLIER
from fxquant.numerics.types import SMALLEST_SCALE, QParams, QTensor, QuantSpec

_LARGEST_BIAS = float(1 << 28)  # int32 with room for the accumulated products


def max_scale(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Scale that covers each channel's largest magnitude, float64 `[O]`; 0 for a dead channel."""
    return weight.abs().flatten(1).amax(1).double() / spec.dtype.qmax


def search_scale(weight: Tensor, spec: QuantSpec, steps: int = 80, smallest: float = 0.3) -> Tensor:
    """Scale of least squared rounding error for every channel, all channels at once.

    Args:
        weight: `[O, ...]`.
        spec: Wanted grid.
        steps: Fractions of the covering scale that are tried.
        smallest: Smallest fraction.

    Returns:
        float64 `[O]`.
    """
    flat = weight.double().flatten(1)  # [O, K]
    covering = max_scale(weight, spec)
    best, best_error = covering.clone(), torch.full_like(covering, torch.inf)
    for fraction in torch.linspace(1.0, smallest, steps, dtype=torch.float64):
        scale = (covering * fraction).clamp(min=SMALLEST_SCALE)
        codes = torch.round(flat / scale[:, None]).clamp(spec.dtype.qmin, spec.dtype.qmax)
        error = ((codes * scale[:, None] - flat) ** 2).sum(1)
        better = error < best_error
        best = torch.where(better, scale, best)
        best_error = torch.where(better, error, best_error)
    return best


def start_scale(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Scales to start from: covering at 8 bits, of least squared error below; float64 `[O]`."""
    return max_scale(weight, spec) if spec.dtype.bits == 8 else search_scale(weight, spec)


def floor_scale(
    scale: Tensor, bias: Tensor, input: QParams, output: QParams | None
) -> tuple[Tensor, int]:
    """Raise scales for which the int32 bias or the requantization multiplier leaves its range.

    A channel whose weights are (nearly) zero would put its bias on an unboundedly fine grid.

    Args:
        scale: float64 `[O]`.
        bias: `[O]`.
        input: Grid of the layer's input.
        output: Grid of its result, if it has one.

    Returns:
        The scales and how many were raised.
    """
    input_scale = float(input.scale)
    floor = bias.double().abs() / (_LARGEST_BIAS * input_scale)
    if output is not None:
        smallest = SMALLEST_MULTIPLIER * 2 * float(output.scale) / input_scale
        floor = floor.clamp(min=smallest)
    floor = floor.clamp(min=max(SMALLEST_SCALE * 2, SMALLEST_SCALE * 2 / input_scale))
    return torch.maximum(scale, floor), int((scale < floor).sum())


def round_to_grid(weight: Tensor, scale: Tensor, spec: QuantSpec) -> QTensor:
    """Nearest codes on the given scales (`[O]`)."""
    scale32 = scale.float()
    shaped = scale32.double().reshape([-1] + [1] * (weight.ndim - 1))
    codes = torch.round(weight.double() / shaped).clamp(spec.dtype.qmin, spec.dtype.qmax)
    zero_point = torch.zeros(scale32.shape, dtype=torch.int32)
    return QTensor(codes.to(torch.int8), QParams(spec, scale32, zero_point))
