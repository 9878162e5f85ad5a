"""How each operator of the dialect is written in ONNX: `EMITTERS`, one row an operator.

An emitter takes the builder, the node and its arguments by name, appends float ONNX nodes on
dequantized operands, and returns the name of the result, which the builder quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.fx import Node

from fxquant.errors import UnsupportedError
from fxquant.ir import meta
from fxquant.onnx.activations import ACTIVATIONS
from fxquant.onnx.windows import averaging_matrix, interpolation_matrix, window
from fxquant.ops import arithmetic, conv, elementwise, pool, shape

if TYPE_CHECKING:
    from fxquant.onnx.export import OnnxBuilder

Arguments = Mapping[str, Any]
Emitter = Callable[["OnnxBuilder", Node, Arguments], str]


def _conv2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    x, (top, bottom, left, right) = to.read(args["x"]), args["padding"]
    if min(args["padding"]) < 0:
        pads = ((0, 0), (0, 0), (top, bottom), (left, right))
        x, (top, bottom, left, right) = _padded(to, x, pads, 0.0), (0, 0, 0, 0)
    y = to.node(
        "Conv", [x, to.weight(node), *to.bias(node)],
        strides=args["stride"], dilations=args["dilation"], group=args["groups"],
        pads=[top, left, bottom, right],
    )  # fmt: skip
    if "residual" in args:
        if to.summands is not None:
            grid = to.summands[node.name]
            y = to.dequantize(to.quantize(y, grid), grid)
        y = to.node("Add", [y, to.read(args["residual"])])
    return to.clamp(y, node)


def _conv_transpose2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    """The dialect's weight is that of the equivalent convolution: `[O, C/g, KH, KW]`, flipped."""
    groups, weight = args["groups"], meta.shape_of(args["weight"])
    outputs, inputs, *kernel = weight
    reach = [d * (k - 1) for d, k in zip(args["dilation"], kernel, strict=True)]
    top, bottom, left, right = args["padding"]
    before = [reach[0] - top, reach[1] - left]
    after = [reach[0] - bottom, reach[1] - right]
    if min(before) < 0:
        raise UnsupportedError(
            f"{node.name} pads its result", where=meta.place(node),
            why="ConvTranspose has no negative pads", remedy="use less padding",
        )  # fmt: skip
    w = to.weight(node, flipped=True)
    split = to.constant(np.array([groups, outputs // groups, inputs, *kernel]))
    merged = to.constant(np.array([groups * inputs, outputs // groups, *kernel]))
    w = to.node("Transpose", [to.node("Reshape", [w, split])], perm=[0, 2, 1, 3, 4])
    y = to.node(
        "ConvTranspose", [to.read(args["x"]), to.node("Reshape", [w, merged]), *to.bias(node)],
        strides=args["stride"], dilations=args["dilation"], group=groups,
        pads=[*before, *(max(a, 0) for a in after)], output_padding=[max(-a, 0) for a in after],
    )  # fmt: skip
    return to.clamp(y, node)


def _linear(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    x, weight, bias = to.read(args["x"]), to.weight(node), to.bias(node)
    if len(meta.shape_of(node)) == 2:
        return to.clamp(to.node("Gemm", [x, weight, *bias], transB=1), node)
    y = to.node("MatMul", [x, to.node("Transpose", [weight], perm=[1, 0])])
    return to.clamp(to.node("Add", [y, *bias]) if bias else y, node)


def _binary(op: str) -> Emitter:
    def emit(to: OnnxBuilder, node: Node, args: Arguments) -> str:
        return to.clamp(to.node(op, [to.read(args["a"]), to.read(args["b"])]), node)

    return emit


def _concat(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.node("Concat", [to.read(x) for x in args["tensors"]], axis=args["axis"])


def _pool(to: OnnxBuilder, op: str, node: Node, args: Arguments, **attributes: Any) -> str:
    height, width = meta.shape_of(args["x"])[2:]
    rows, cols = window(args["rows"], height), window(args["cols"], width)
    if rows is None or cols is None:
        raise UnsupportedError(
            f"{node.name} has windows that are not evenly spaced", where=meta.place(node),
            why=f"{op} of ONNX has one stride and one size", remedy="use a plain pooling layer",
        )  # fmt: skip
    dilated = {"dilations": [rows.dilation, cols.dilation]} if op == "MaxPool" else {}
    return to.node(
        op, [to.read(args["x"])], kernel_shape=[rows.kernel, cols.kernel],
        strides=[rows.stride, cols.stride],
        pads=[rows.before, cols.before, rows.after, cols.after], **dilated, **attributes,
    )  # fmt: skip


def _max_pool2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return _pool(to, "MaxPool", node, args)


def _avg_pool2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    height, width = meta.shape_of(args["x"])[2:]
    if args["rows"] == ((0, height, 1),) and args["cols"] == ((0, width, 1),):
        return to.node("GlobalAveragePool", [to.read(args["x"])])
    axes = ((args["rows"], args["row_counts"], height), (args["cols"], args["col_counts"], width))
    found = [window(w, size) for w, _, size in axes]
    divisors = [tuple(c) for _, c, _ in axes]
    lengths = [tuple(b - a for a, b, _ in w) for w, _, _ in axes]
    if all(w is not None and w.dilation == 1 for w in found):
        if divisors == lengths:
            return _pool(to, "AveragePool", node, args, count_include_pad=0)
        if divisors == [(w.kernel,) * len(c) for w, c in zip(found, divisors, strict=True) if w]:
            return _pool(to, "AveragePool", node, args, count_include_pad=1)
    rows, cols = (averaging_matrix(*axis) for axis in axes)
    return _separable(to, args, rows, cols)


def _resize_linear2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    height, width = meta.shape_of(args["x"])[2:]
    rows, cols = (interpolation_matrix(args[k], s) for k, s in (("rows", height), ("cols", width)))
    return _separable(to, args, rows, cols)


def _separable(to: OnnxBuilder, args: Arguments, rows: np.ndarray, cols: np.ndarray) -> str:
    """`rows @ x @ cols^T` on every plane: what pooling and resizing are in general."""
    y = to.node("MatMul", [to.constant(rows), to.read(args["x"])])
    return to.node("MatMul", [y, to.constant(np.ascontiguousarray(cols.T))])


def _lrn(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    attributes = {"alpha": args["alpha"], "beta": args["beta"], "bias": args["k"]}
    return to.node("LRN", [to.read(args["x"])], size=args["size"], **attributes)


def _clamp(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.clamp(to.read(args["x"]), node)


def _prelu(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    slope = meta.tensor_of(to.gm, args["slope"]).numpy()
    rank = len(meta.shape_of(node))
    return to.node("PRelu", [to.read(args["x"]),
                             to.constant(slope.reshape(-1, *(1,) * (rank - 2)))])  # fmt: skip


def _reshape(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    target = to.constant(np.array(args["shape"], np.int64))  # a leading 0 means the same in ONNX
    return to.node("Reshape", [to.read(args["x"]), target])


def _permute(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.node("Transpose", [to.read(args["x"])], perm=args["dims"])


def _slice_axis(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    bounds = (args["start"], args["stop"], args["axis"], args["step"])
    return to.node("Slice", [to.read(args["x"]), *(to.constant(np.array([b])) for b in bounds)])


def _pad(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return _padded(to, to.read(args["x"]), args["pads"], args["value"])


def _padded(to: OnnxBuilder, x: str, pads: tuple[tuple[int, int], ...], value: float) -> str:
    amounts = np.array(pads, np.int64).T.flatten()  # all befores, then all afters
    return to.node("Pad", [x, to.constant(amounts), to.constant(np.array(value, np.float32))])


def _gather2d(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    rows, cols = (to.constant(np.array(args[k], np.int64)) for k in ("rows", "cols"))
    return to.node("Gather", [to.node("Gather", [to.read(args["x"]), rows], axis=2), cols], axis=3)


def _channel_shuffle(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    _, c, h, w = meta.shape_of(node)
    split = to.constant(np.array([0, args["groups"], c // args["groups"], h, w]))
    y = to.node("Reshape", [to.read(args["x"]), split])
    y = to.node("Transpose", [y], perm=[0, 2, 1, 3, 4])
    return to.node("Reshape", [y, to.constant(np.array([0, c, h, w]))])


def _activation(function: Callable[..., Any]) -> Emitter:
    write = ACTIVATIONS[function]

    def emit(to: OnnxBuilder, node: Node, args: Arguments) -> str:
        return write(to, to.read(args["x"]), args)

    return emit


def _identity(to: OnnxBuilder, node: Node, args: Arguments) -> str:
    return to.node("Identity", [to.read(args["x"])])


EMITTERS: dict[Callable[..., Any], Emitter] = {
    conv.conv2d: _conv2d,
    conv.conv_transpose2d: _conv_transpose2d,
    conv.linear: _linear,
    arithmetic.requantize: _identity,
    arithmetic.add: _binary("Add"),
    arithmetic.mul: _binary("Mul"),
    arithmetic.concat: _concat,
    pool.max_pool2d: _max_pool2d,
    pool.avg_pool2d: _avg_pool2d,
    pool.resize_linear2d: _resize_linear2d,
    pool.local_response_norm: _lrn,
    elementwise.clamp: _clamp,
    elementwise.prelu: _prelu,
    shape.reshape: _reshape,
    shape.permute: _permute,
    shape.slice_axis: _slice_axis,
    shape.pad: _pad,
    shape.gather2d: _gather2d,
    shape.channel_shuffle: _channel_shuffle,
    **{function: _activation(function) for function in ACTIVATIONS},
}
