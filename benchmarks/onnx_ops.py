"""How each operator is written in ONNX: `EMITTERS`, one row an operator.

An emitter takes the builder, the node and its arguments by name, appends float ONNX nodes on
dequantized operands, and returns the name of the result, which the builder quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx import Node

from fxquant.errors import UnsupportedError
from fxquant.ir import meta
from fxquant.numerics.reference.pool import Windows
from fxquant.ops import arithmetic, conv, elementwise, pool, shape

if TYPE_CHECKING:
    from benchmarks.onnx_qdq import OnnxBuilder

Arguments = Mapping[str, Any]
Emitter = Callable[["OnnxBuilder", Node, Arguments], str]


def _conv2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    top, bottom, left, right = args["padding"]
    y = to.node(
        "Conv", [to.read(args["x"]), to.weight(node), *to.bias(node)],
        strides=args["stride"], dilations=args["dilation"], group=args["groups"],
        pads=[top, left, bottom, right],
    )  # fmt: skip
    if "residual" in args:
        if to.summands is not None:
            grid = to.summands[node.name]
            y = to.dequantize(to.quantize(y, grid), grid)
        y = to.node("Add", [y, to.read(args["residual"])])
    return to.clamp(y, node)


def _linear(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    if len(meta.shape_of(node)) != 2:
        raise UnsupportedError(f"{node.name} is a linear layer of rank {len(meta.shape_of(node))}")
    operands = [to.read(args["x"]), to.weight(node), *to.bias(node)]
    return to.clamp(to.node("Gemm", operands, transB=1), node)


def _binary(op: str) -> Emitter:
    def emit(to: OnnxBuilder, node: Node, args: Arguments) -> str:
        return to.clamp(to.node(op, [to.read(args["a"]), to.read(args["b"])]), node)

    return emit


def _concat(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.node("Concat", [to.read(x) for x in args["tensors"]], axis=args["axis"])


def window(windows: Windows, size: int) -> tuple[int, int, int, int]:
    """Kernel, stride and padding before and after, from the windows along one axis.

    Raises:
        UnsupportedError: The windows are not evenly spaced (adaptive pooling).
    """
    kernel = max(stop - start for start, stop, _ in windows)
    strides = range(1, size + 1) if len(windows) > 1 else (1,)
    for stride in strides:
        for before in range(kernel):
            starts = [i * stride - before for i in range(len(windows))]
            expected = tuple((max(s, 0), min(s + kernel, size), 1) for s in starts)
            if expected == tuple(windows):
                return kernel, stride, before, max(starts[-1] + kernel - size, 0)
    raise UnsupportedError(f"pooling windows {windows[:3]}... are not evenly spaced")


def _pool(to: OnnxBuilder, op: str, args: Arguments, **attributes: Any) -> str:
    height, width = meta.shape_of(args["x"])[2:]
    (kh, sh, top, bottom) = window(args["rows"], height)
    (kw, sw, left, right) = window(args["cols"], width)
    geometry = {"kernel_shape": [kh, kw], "strides": [sh, sw], "pads": [top, left, bottom, right]}
    return to.node(op, [to.read(args["x"])], **geometry, **attributes)


def _max_pool2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return _pool(to, "MaxPool", args)


def _avg_pool2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    if len(args["rows"]) == len(args["cols"]) == 1:
        return to.node("GlobalAveragePool", [to.read(args["x"])])
    lengths = [w[1] - w[0] for w in args["rows"]]
    return _pool(
        to, "AveragePool", args, count_include_pad=int(list(args["row_counts"]) != lengths)
    )


def _lrn(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    attributes = {"alpha": args["alpha"], "beta": args["beta"], "bias": args["k"]}
    return to.node("LRN", [to.read(args["x"])], size=args["size"], **attributes)


def _unary(op: str, **attributes: Any) -> Emitter:
    def emit(to: OnnxBuilder, node: Node, args: Arguments) -> str:
        return to.node(op, [to.read(args["x"])], **attributes)

    return emit


def _clamp(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.clamp(to.read(args["x"]), node)


def _silu(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    x = to.read(args["x"])
    return to.node("Mul", [x, to.node("Sigmoid", [x])])


def _leaky_relu(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.node("LeakyRelu", [to.read(args["x"])], alpha=args.get("negative_slope", 0.01))


def _reshape(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    target = to.constant(np.array(args["shape"], np.int64))  # a leading 0 means the same in ONNX
    return to.node("Reshape", [to.read(args["x"]), target])


def _permute(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.node("Transpose", [to.read(args["x"])], perm=args["dims"])


def _slice_axis(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    bounds = (args["start"], args["stop"], args["axis"], args["step"])
    return to.node("Slice", [to.read(args["x"]), *(to.constant(np.array([b])) for b in bounds)])


def _pad(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    amounts = np.array(args["pads"], np.int64).T.flatten()  # all befores, then all afters
    value = to.constant(np.array(args["value"], np.float32))
    return to.node("Pad", [to.read(args["x"]), to.constant(amounts), value])


def _channel_shuffle(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    n, c, h, w = meta.shape_of(node)
    split = to.constant(np.array([n, args["groups"], c // args["groups"], h, w]))
    y = to.node("Reshape", [to.read(args["x"]), split])
    y = to.node("Transpose", [y], perm=[0, 2, 1, 3, 4])
    return to.node("Reshape", [y, to.constant(np.array([n, c, h, w]))])


EMITTERS: dict[Callable[..., Any], Emitter] = {
    conv.conv2d: _conv2d,
    conv.linear: _linear,
    arithmetic.add: _binary("Add"),
    arithmetic.mul: _binary("Mul"),
    arithmetic.concat: _concat,
    pool.max_pool2d: _max_pool2d,
    pool.avg_pool2d: _avg_pool2d,
    pool.local_response_norm: _lrn,
    elementwise.clamp: _clamp,
    F.hardswish: _unary("HardSwish"),
    F.hardsigmoid: _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    F.silu: _silu,
    F.leaky_relu: _leaky_relu,
    torch.sigmoid: _unary("Sigmoid"),
    torch.tanh: _unary("Tanh"),
    shape.reshape: _reshape,
    shape.permute: _permute,
    shape.slice_axis: _slice_axis,
    shape.pad: _pad,
    shape.channel_shuffle: _channel_shuffle,
}
