"""Convolution, transposed convolution and linear on integers.

`acc = sum (x - input_zero_point) * w + bias`, then the requantization, with an optional second
operand (`residual`) scaled by its own multiplier and added before the last rounding.

Codes are uint8 or uint16. Accumulators and bias are int32 where `x` is uint8, int64 where it is
uint16; the multiplier is int16, or int32 for a result of `width` 16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.numerics.reference.carrier import carrier
from fxquant.numerics.requantize import scale_accumulator, to_codes
from fxquant.numerics.width import Width, width_of, width_of_dtype


def conv2d_accumulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    input_zero_point: int,
) -> Tensor:
    """Accumulators `[N, O, OH, OW]`.

    Args:
        x: Codes `[N, C, H, W]`.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: `[O]`.
        stride: `(sh, sw)`.
        padding: `(top, bottom, left, right)`, filled with the zero point.
        dilation: `(dh, dw)`.
        groups: Channel groups.
        input_zero_point: Zero point of `x`.
    """
    top, bottom, left, right = padding
    difference = x.to(torch.int32) - input_zero_point
    real = carrier(difference, weight)
    padded = F.pad(difference.to(real), (left, right, top, bottom))
    if real is torch.float64 and groups == x.shape[1] == weight.shape[0]:
        acc = _depthwise(padded, weight.to(real), stride, dilation)
    else:
        acc = F.conv2d(padded, weight.to(real), None, stride, 0, dilation, groups)
    return acc.to(width_of_dtype(x.dtype).accumulator) + bias.reshape(1, -1, 1, 1)


def _depthwise(
    x: Tensor, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Tap by tap: torch's float64 depthwise convolution is far slower."""
    kh, kw = weight.shape[2:]
    oh = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    acc = x.new_zeros(x.shape[0], x.shape[1], oh, ow)
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (oh - 1) * stride[0] + 1, stride[0])
            cols = slice(left, left + (ow - 1) * stride[1] + 1, stride[1])
            acc += x[:, :, rows, cols] * weight[None, :, 0, i, j, None, None]
    return acc


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    input_zero_point: int,
    output_zero_point: int,
    qmin: int,
    qmax: int,
    residual_zero_point: int = 0,
    residual_multiplier: int = 0,
    residual_shift: int = 0,
    width: int = 8,
) -> Tensor:
    """Convolution to codes; see `conv2d_accumulate` for the shapes.

    Args:
        x: Codes `[N, C, H, W]`.
        weight: int8 codes.
        bias: `[O]`.
        multiplier: `[O]`.
        shift: int8 `[O]`.
        residual: Codes `[N, O, OH, OW]` or None; added as `scale_accumulator(residual - zp)`.
        stride: `(sh, sw)`.
        padding: `(top, bottom, left, right)`.
        dilation: `(dh, dw)`.
        groups: Channel groups.
        input_zero_point: Zero point of `x`.
        output_zero_point: Zero point of the result.
        qmin: Lower clip, which includes a fused clamp.
        qmax: Upper clip.
        residual_zero_point: Zero point of `residual`.
        residual_multiplier: m of `residual`.
        residual_shift: s of `residual`.
        width: Width of the result: 8 or 16.
    """
    acc = conv2d_accumulate(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups,
        input_zero_point=input_zero_point,
    )  # fmt: skip
    result = width_of(width)
    scaled = _scale_channels(acc, multiplier, shift, 1, result)
    if residual is not None:
        difference = residual.to(torch.int32) - residual_zero_point
        scaled = scaled + scale_accumulator(difference, residual_multiplier, residual_shift, result)
    return to_codes(scaled, output_zero_point, qmin, qmax, result)


def _scale_channels(
    acc: Tensor, multiplier: Tensor, shift: Tensor, axis: int, width: Width
) -> Tensor:
    shape = [1] * acc.ndim
    shape[axis] = -1
    return scale_accumulator(acc, multiplier.reshape(shape), shift.reshape(shape), width)


def conv_transpose2d_accumulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    input_zero_point: int,
) -> Tensor:
    """Transposed convolution as a stride-1 convolution over the zero-inserted input.

    Args:
        x: Codes `[N, C, H, W]`.
        weight: int8 `[O, C/groups, KH, KW]`: the weight of the equivalent convolution (flipped
            and transposed from torch's `[C, O/groups, KH, KW]`).
        bias: `[O]`.
        stride: Zero insertion: `stride - 1` zeros between neighbours.
        padding: `(top, bottom, left, right)` of the equivalent convolution, may be negative.
        dilation: Kernel dilation.
        groups: Channel groups.
        input_zero_point: Zero point of `x`; inserted zeros carry it.
    """
    n, c, h, w = x.shape
    sh, sw = stride
    stuffed = x.new_full((n, c, (h - 1) * sh + 1, (w - 1) * sw + 1), input_zero_point)
    stuffed[:, :, ::sh, ::sw] = x
    return conv2d_accumulate(
        stuffed, weight, bias, stride=(1, 1), padding=padding, dilation=dilation, groups=groups,
        input_zero_point=input_zero_point,
    )  # fmt: skip


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    input_zero_point: int,
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """Transposed convolution to codes; arguments as `conv_transpose2d_accumulate`."""
    acc = conv_transpose2d_accumulate(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups,
        input_zero_point=input_zero_point,
    )  # fmt: skip
    scaled = _scale_channels(acc, multiplier, shift, 1, width_of(width))
    return to_codes(scaled, output_zero_point, qmin, qmax, width_of(width))


def linear_accumulate(x: Tensor, weight: Tensor, bias: Tensor, *, input_zero_point: int) -> Tensor:
    """Accumulators `[..., O]` of codes `x` `[..., K]` and `weight` int8 `[O, K]`."""
    difference = x.to(torch.int32) - input_zero_point
    real = carrier(difference, weight)
    acc = F.linear(difference.to(real), weight.to(real))
    return acc.to(width_of_dtype(x.dtype).accumulator) + bias


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    *,
    input_zero_point: int,
    output_zero_point: int,
    qmin: int,
    qmax: int,
    width: int = 8,
) -> Tensor:
    """Linear layer to codes `[..., O]`."""
    acc = linear_accumulate(x, weight, bias, input_zero_point=input_zero_point)
    scaled = _scale_channels(acc, multiplier, shift, -1, width_of(width))
    return to_codes(scaled, output_zero_point, qmin, qmax, width_of(width))
