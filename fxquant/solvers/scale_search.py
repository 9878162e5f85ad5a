"""THE grid search for weight scales, and the floor that keeps biases and multipliers in range."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.numerics.types import SMALLEST_SCALE, QParams, QTensor, QuantSpec
from fxquant.numerics.width import width_of


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
    fractions = torch.linspace(1.0, smallest, steps, dtype=torch.float64, device=flat.device)
    scales = (fractions[:, None] * max_scale(weight, spec)).clamp(min=SMALLEST_SCALE)  # [n, O]
    costs = []
    for scale in scales[:, :, None]:
        codes = torch.round(flat / scale).clamp(spec.dtype.qmin, spec.dtype.qmax)
        costs.append(((codes * scale - flat) ** 2).sum(1))
    best = pick(torch.stack(costs)[:, None])
    return scales.gather(0, best[None])[0]


def pick(costs: Tensor, tolerance: float = 0.0) -> Tensor:
    """The best candidate of every channel.

    Candidates whose first cost exceeds the least by no more than `tolerance` are equal, unless
    they are worse than candidate 0. Of equal candidates the last cost decides, then the order.

    Args:
        costs: `[n, k, C]`: k costs of n candidates for C channels.
        tolerance: See above.

    Returns:
        int64 `[C]` in `[0, n)`.
    """
    first, last = costs[:, 0], costs[:, -1]
    equal = (first <= first.amin(0) + tolerance) & (first <= first[0])
    return torch.where(equal, last, torch.inf).argmin(0)


def start_scale(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Scales to start from: covering at 8 bits, of least squared error below; float64 `[O]`."""
    return max_scale(weight, spec) if spec.dtype.bits == 8 else search_scale(weight, spec)


def smallest_scale(bias: Tensor, input: QParams, output: QParams | None) -> Tensor:
    """Smallest legal weight scale of every channel, float64 `[O]`; see floor_scale."""
    input_scale = float(input.scale)
    largest = width_of(input.spec.dtype.bits).largest_bias
    floor = bias.double().abs() / (largest * input_scale)
    if output is not None:
        smallest = width_of(output.spec.dtype.bits).smallest_multiplier
        floor = floor.clamp(min=smallest * 2 * float(output.scale) / input_scale)
    return floor.clamp(min=max(SMALLEST_SCALE * 2, SMALLEST_SCALE * 2 / input_scale))


def floor_scale(
    scale: Tensor, bias: Tensor, input: QParams, output: QParams | None
) -> tuple[Tensor, int]:
    """Raise scales for which the bias or the requantization multiplier leaves its range.

    A channel whose weights are (nearly) zero would put its bias on an unboundedly fine grid.

    Args:
        scale: float64 `[O]`.
        bias: `[O]`.
        input: Grid of the layer's input.
        output: Grid of its result, if it has one.

    Returns:
        The scales and how many were raised.
    """
    floor = smallest_scale(bias, input, output)
    return torch.maximum(scale, floor), int((scale < floor).sum())


def round_to_grid(weight: Tensor, scale: Tensor, spec: QuantSpec) -> QTensor:
    """Nearest codes on the given scales (`[O]`)."""
    scale32 = scale.float()
    shaped = scale32.double().reshape([-1] + [1] * (weight.ndim - 1))
    codes = torch.round(weight.double() / shaped).clamp(spec.dtype.qmin, spec.dtype.qmax)
    zero_point = torch.zeros(scale32.shape, dtype=torch.int32)
    return QTensor(codes.to(torch.int8), QParams(spec, scale32, zero_point))


def raise_scales(
    start: QTensor, weight: Tensor, bias: Tensor, input: QParams, output: QParams | None
) -> tuple[QTensor, int]:
    """Round channels anew whose scale has become too fine for the grids around; see floor_scale.

    Returns:
        The weight and how many channels were raised.
    """
    scale = start.qparams.scale
    floor = smallest_scale(bias, input, output).float()
    low = scale < floor
    if not bool(low.any()):
        return start, 0
    rounded = round_to_grid(weight, torch.maximum(scale, floor).double(), start.qparams.spec)
    shaped = low.reshape([-1] + [1] * (weight.ndim - 1))
    return QTensor(torch.where(shaped, rounded.codes, start.codes), rounded.qparams), int(low.sum())
