"""Convolution, transposed convolution and linear: the operators with weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.numerics import reference
from fxquant.numerics.accumulator import check_accumulator
from fxquant.numerics.requantize import requant_from_real
from fxquant.ops.clamp import Clamp, apply_clamp
from fxquant.ops.opdef import FloatOutput, Grid, Input, IntegerCall, OpDef, QuantCall


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    clamp: Clamp | None = None,
) -> Tensor:
    """`clamp(conv(x) + bias [+ residual])`.

    Args:
        x: `[N, C, H, W]`.
        weight: `[O, C/groups, KH, KW]`.
        bias: `[O]`.
        residual: `[N, O, OH, OW]`, added before the clamp.
        stride: `(sh, sw)`.
        padding: `(top, bottom, left, right)`, zeros.
        dilation: `(dh, dw)`.
        groups: Channel groups.
        clamp: Real bounds of a fused activation.
    """
    top, bottom, left, right = padding
    pointwise = _is_thin_pointwise(weight, stride)
    if pointwise or top != bottom or left != right or min(padding) < 0:
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    if pointwise:
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    y = F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return apply_clamp(y if residual is None else y + residual, clamp)


def _is_thin_pointwise(weight: Tensor, stride: tuple[int, int]) -> bool:
    """Whether oneDNN's gradient of the weight would write outside of its buffers.

    It does for strided 1x1 kernels over channels-last values with fewer channels than a vector has
    lanes: the process crashes, or the gradient is wrong (uxlfoundation/oneDNN, issue 6035).
    """
    return tuple(weight.shape[2:]) == (1, 1) and stride != (1, 1) and weight.shape[1] < 16


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    clamp: Clamp | None = None,
) -> Tensor:
    """Transposed convolution, written as a convolution over the zero-inserted input.

    Args:
        x: `[N, C, H, W]`.
        weight: `[O, C/groups, KH, KW]` of the equivalent convolution (flipped).
        bias: `[O]`.
        stride: Zero insertion.
        padding: `(top, bottom, left, right)` of the equivalent convolution, may be negative.
        dilation: Kernel dilation.
        groups: Channel groups.
        clamp: Real bounds of a fused activation.
    """
    return conv2d(insert_zeros(x, stride), weight, bias, stride=(1, 1), padding=padding,
                  dilation=dilation, groups=groups, clamp=clamp)  # fmt: skip


def insert_zeros(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """`[N, C, (H-1)*sh+1, (W-1)*sw+1]`: `stride - 1` zeros between neighbouring pixels."""
    n, c, h, w = x.shape
    sh, sw = stride
    stuffed = x.new_zeros((n, c, (h - 1) * sh + 1, (w - 1) * sw + 1))
    stuffed[:, :, ::sh, ::sw] = x
    return stuffed


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, clamp: Clamp | None = None
) -> Tensor:
    """`clamp(x @ weight.T + bias)` for x `[..., K]`, weight `[O, K]`."""
    return apply_clamp(F.linear(x, weight, bias), clamp)


def integer_bias(call: QuantCall) -> Tensor:
    """Bias at scale `s_x * s_w`, `[O]`, of the accumulators' type."""
    assert call.weight is not None
    scale = call.weight.qparams.scale.double() * call.operand("x").scale
    bias, dtype = call.args.get("bias"), call.operand("x").width.accumulator
    if bias is None:
        return torch.zeros(scale.shape, dtype=dtype)
    return torch.round(bias.double() / scale).to(dtype)


def _weighted(call: QuantCall, requantizing, accumulating, axis: int, **kwargs) -> IntegerCall:
    """The integer call shared by all weighted operators."""
    assert call.weight is not None
    x, weight, bias = call.operand("x"), call.weight, integer_bias(call)
    kwargs["input_zero_point"] = x.zero_point
    scale = weight.qparams.scale.double() * x.scale  # [O]
    clamp = call.args.get("clamp")
    if call.output is None:
        check_accumulator(weight.codes, bias, x.zero_point, x.qmax, 0, call.name)
        output = FloatOutput(scale.float(), axis, clamp or (None, None))
        return IntegerCall(accumulating, (Input("x"), weight.codes, bias), kwargs, output)
    requant = requant_from_real(scale / call.output.scale, call.name, call.output.width)
    longest = max(int(requant.shift.max()), 0)
    check_accumulator(weight.codes, bias, x.zero_point, x.qmax, longest, call.name)
    kwargs |= call.output.result(clamp)
    args = (Input("x"), weight.codes, bias, requant.multiplier, requant.shift)
    return IntegerCall(requantizing, args, kwargs)


def _integer_conv2d(call: QuantCall) -> IntegerCall:
    kwargs = {k: call.args[k] for k in ("stride", "padding", "dilation", "groups")}
    result = _weighted(call, reference.conv2d, reference.conv2d_accumulate, 1, **kwargs)
    if "residual" not in call.inputs:
        return result
    assert call.output is not None
    call.check_sum("residual")
    residual = call.operand("residual")
    scale = torch.tensor(residual.scale / call.output.scale, dtype=torch.float64)
    requant = requant_from_real(scale, call.name, call.output.width)
    extra = {
        "residual_zero_point": residual.zero_point,
        "residual_multiplier": int(requant.multiplier),
        "residual_shift": int(requant.shift),
    }
    args = (*result.args, Input("residual"))
    return IntegerCall(result.function, args, {**result.kwargs, **extra})


def _integer_conv_transpose2d(call: QuantCall) -> IntegerCall:
    kwargs = {k: call.args[k] for k in ("stride", "padding", "dilation", "groups")}
    return _weighted(
        call, reference.conv_transpose2d, reference.conv_transpose2d_accumulate, 1, **kwargs
    )


def _integer_linear(call: QuantCall) -> IntegerCall:
    return _weighted(call, reference.linear, reference.linear_accumulate, call.rank - 1)


DEFS = (
    OpDef(
        conv2d,
        Grid.OWN,
        ("x", "weight", "bias", "residual"),
        ("x", "residual"),
        _integer_conv2d,
        weighted=True,
        accumulates=lambda args: args.get("residual") is None,
        clamps=True,
        summed=("residual",),
    ),
    OpDef(
        conv_transpose2d,
        Grid.OWN,
        ("x", "weight", "bias"),
        ("x",),
        _integer_conv_transpose2d,
        weighted=True,
        accumulates=lambda args: True,
        clamps=True,
    ),
    OpDef(
        linear,
        Grid.OWN,
        ("x", "weight", "bias"),
        ("x",),
        _integer_linear,
        weighted=True,
        accumulates=lambda args: True,
        clamps=True,
    ),
)
