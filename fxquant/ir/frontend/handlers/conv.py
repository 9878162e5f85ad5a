"""Convolutions, linear and batch norm. 1-d forms become 2-d ones with one row."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fxquant.errors import CaptureError
from fxquant.ir.frontend.call import Call
from fxquant.ir.meta import shape_of
from fxquant.ops import conv as ops
from fxquant.ops.normalization import batch_norm as batch_norm_op

IntOrPair = int | tuple[int, ...] | list[int]


def pair(value: IntOrPair, default: int | None = None) -> tuple[int, int]:
    """An int or a sequence as `(h, w)`; an empty sequence is the default."""
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    if not values:
        assert default is not None
        return default, default
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    (th, tw) = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return th // 2, th - th // 2, tw // 2, tw - tw // 2


def _is_parameter(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"


def conv2d(
    call: Call,
    input: Node,
    weight: Node,
    bias: Node | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Any:
    """aten::conv2d, F.conv2d, nn.Conv2d."""
    if len(shape_of(input)) != 4 or not _is_parameter(weight):
        return NotImplemented
    kernel, dilation = shape_of(weight)[2:], pair(dilation)
    if padding == "same":
        pads = _same_padding((kernel[0], kernel[1]), dilation)
    else:
        ph, pw = (0, 0) if isinstance(padding, str) else pair(padding)
        pads = (ph, ph, pw, pw)
    return call.emit(ops.conv2d, input, weight, bias, stride=pair(stride), padding=pads,
                     dilation=dilation, groups=groups)  # fmt: skip


def _lifted(call: Call, input: Node, weight: Node) -> tuple[Node, Node]:
    """`[N, C, L]` -> `[N, C, 1, L]`, and the weight likewise."""
    n, c, length = shape_of(input)
    x = call.reshape(input, (n, c, 1, length))
    value = call.builder.root.get_parameter(str(weight.target))
    return x, call.builder.tensor(value.detach().unsqueeze(2), str(weight.target))


def conv1d(
    call: Call,
    input: Node,
    weight: Node,
    bias: Node | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Any:
    """aten::conv1d as a conv2d over one row."""
    if len(shape_of(input)) != 3 or not _is_parameter(weight):
        return NotImplemented
    x, w = _lifted(call, input, weight)
    if not isinstance(padding, str):
        padding = (0, pair(padding)[0])
    y = conv2d(call, x, w, bias, (1, pair(stride)[0]), padding, (1, pair(dilation)[0]), groups)
    return call.reshape(y, call.out_shape)


def conv_transpose2d(
    call: Call,
    input: Node,
    weight: Node,
    bias: Node | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Any:
    """aten::conv_transpose2d; weight `[C, O/g, KH, KW]` -> `[O, C/g, KH, KW]`, flipped."""
    if len(shape_of(input)) != 4 or not _is_parameter(weight):
        return NotImplemented
    value = call.builder.root.get_parameter(str(weight.target)).detach()
    c, o, kh, kw = value.shape
    grouped = value.reshape(groups, c // groups, o, kh, kw).transpose(1, 2).flip(3, 4)
    equivalent = grouped.reshape(groups * o, c // groups, kh, kw).contiguous()
    (ph, pw), (oh, ow), (dh, dw) = pair(padding), pair(output_padding), pair(dilation)
    top, left = dh * (kh - 1) - ph, dw * (kw - 1) - pw
    return call.emit(
        ops.conv_transpose2d,
        input,
        call.builder.tensor(equivalent, str(weight.target)),
        bias,
        stride=pair(stride),
        padding=(top, top + oh, left, left + ow),
        dilation=(dh, dw),
        groups=groups,
    )


def conv_transpose1d(
    call: Call,
    input: Node,
    weight: Node,
    bias: Node | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Any:
    """aten::conv_transpose1d over one row."""
    if len(shape_of(input)) != 3 or not _is_parameter(weight):
        return NotImplemented
    x, w = _lifted(call, input, weight)
    y = conv_transpose2d(
        call, x, w, bias, (1, pair(stride)[0]), (0, pair(padding)[0]),
        (0, pair(output_padding)[0]), groups, (1, pair(dilation)[0]),
    )  # fmt: skip
    return call.reshape(y, call.out_shape)


def convolution(
    call: Call,
    input: Node,
    weight: Node,
    bias: Node | None,
    stride: IntOrPair,
    padding: IntOrPair,
    dilation: IntOrPair,
    transposed: bool,
    output_padding: IntOrPair,
    groups: int,
) -> Any:
    """aten::convolution, the decomposed form."""
    one_row = len(shape_of(input)) == 3
    if transposed:
        handler = conv_transpose1d if one_row else conv_transpose2d
        return handler(call, input, weight, bias, stride, padding, output_padding, groups, dilation)
    handler = conv1d if one_row else conv2d
    return handler(call, input, weight, bias, stride, padding, dilation, groups)


def linear(call: Call, input: Node, weight: Node, bias: Node | None = None) -> Any:
    """aten::linear."""
    if not _is_parameter(weight) or not 2 <= len(shape_of(input)) <= 4:
        return NotImplemented
    if len(shape_of(input)) == 4:  # integer linear layers take [N, K] and [N, T, K]
        n, h, w, k = shape_of(input)
        y = call.emit(ops.linear, call.reshape(input, (n, h * w, k)), weight, bias)
        return call.reshape(y, call.out_shape)
    return call.emit(ops.linear, input, weight, bias)


def batch_norm(
    call: Call,
    input: Node,
    running_mean: Node | None,
    running_var: Node | None,
    weight: Node | None = None,
    bias: Node | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """F.batch_norm with running statistics."""
    if training:
        raise CaptureError(
            "a batch norm normalizes by the statistics of the batch",
            where=call.place,
            why="a network that is quantized treats samples one by one",
            remedy="call model.eval() before torch.export.export; a layer without running "
            "statistics needs track_running_stats=True, or is an instance norm",
        )
    assert running_mean is not None and running_var is not None
    shape = shape_of(input)
    lifted = len(shape) == 3
    x = call.reshape(input, (shape[0], shape[1], 1, shape[2])) if lifted else input
    y = call.emit(batch_norm_op, x, running_mean, running_var, weight, bias, eps=eps)
    return call.reshape(y, shape)


def aten_batch_norm(call: Call, input: Node, *args: Any, **kwargs: Any) -> Any:
    """Tell aten's argument order (weight first) from torch.nn.functional's (mean first)."""
    if len(args) == 8:  # aten: weight, bias, mean, var, training, momentum, eps, cudnn
        weight, bias, mean, var, training, momentum, eps, _ = args
        return batch_norm(call, input, mean, var, weight, bias, training, momentum, eps)
    return batch_norm(call, input, *args, **kwargs)


def inference_batch_norm(
    call: Call, input: Node, weight: Node | None, bias: Node | None, mean: Node, var: Node,
    momentum: float, eps: float,
) -> Any:  # fmt: skip
    """aten::_native_batch_norm_legit_no_training returns a tuple; only its first is used."""
    return native_batch_norm(call, input, weight, bias, mean, var, False, momentum, eps)


def native_batch_norm(
    call: Call, input: Node, weight: Node | None, bias: Node | None, mean: Node, var: Node,
    training: bool, momentum: float, eps: float,
) -> Any:  # fmt: skip
    """aten::_native_batch_norm_legit_functional, the decomposed form in training mode."""
    return (batch_norm(call, input, mean, var, weight, bias, training, momentum, eps),)


HANDLERS = {
    "conv1d": conv1d,
    "conv2d": conv2d,
    "conv_transpose1d": conv_transpose1d,
    "conv_transpose2d": conv_transpose2d,
    "convolution": convolution,
    "linear": linear,
    "batch_norm": aten_batch_norm,
    "_native_batch_norm_legit_no_training": inference_batch_norm,
    "_native_batch_norm_legit_functional": native_batch_norm,
}
