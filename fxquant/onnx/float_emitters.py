"""Float islands in ONNX: `FLOAT_EMITTERS`, one row a torch operator, by its bare name.

These nodes keep torch's own function and arguments, so each emitter binds them itself. Reshaping
operators are written with the recorded shape.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.fx import Node

from fxquant.errors import UnsupportedError
from fxquant.ir import meta
from fxquant.onnx.activations import scalar

if TYPE_CHECKING:
    from fxquant.onnx.export import OnnxBuilder

FloatEmitter = Callable[["OnnxBuilder", Node], str]


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def _operand(to: OnnxBuilder, value: Any) -> str:
    return to.read(value) if isinstance(value, Node) else scalar(to, float(value))


def _unary(op: str) -> FloatEmitter:
    return lambda to, node: to.node(op, [to.read(node.all_input_nodes[0])])


def _binary(op: str) -> FloatEmitter:
    def emit(to: OnnxBuilder, node: Node) -> str:
        if set(node.kwargs) - {"input", "other"} or len(node.args) > 2:
            raise UnsupportedError(f"{node.name} has options ONNX lacks", where=meta.place(node))
        operands = (_argument(node, 0, "input"), _argument(node, 1, "other"))
        return to.node(op, [_operand(to, value) for value in operands])

    return emit


def _along_axis(op: str) -> FloatEmitter:
    def emit(to: OnnxBuilder, node: Node) -> str:
        x = node.all_input_nodes[0]
        axis = operator.index(_argument(node, 1, "dim", -1))
        return to.node(op, [to.read(x)], axis=axis % len(meta.shape_of(x)))

    return emit


def _mean(to: OnnxBuilder, node: Node) -> str:
    x, axes = node.all_input_nodes[0], _argument(node, 1, "dim")
    rank = len(meta.shape_of(x))
    axes = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    keep = int(bool(_argument(node, 2, "keepdim", False)))
    return to.node("ReduceMean", [to.read(x)], axes=[a % rank for a in axes], keepdims=keep)


def _reshape(to: OnnxBuilder, node: Node) -> str:
    shape = to.constant(np.array(meta.shape_of(node), np.int64))
    return to.node("Reshape", [to.read(node.all_input_nodes[0]), shape])


def _transpose(to: OnnxBuilder, node: Node) -> str:
    x, order = node.all_input_nodes[0], list(range(len(meta.shape_of(node))))
    a, b = _argument(node, 1, "dim0"), _argument(node, 2, "dim1")
    order[a], order[b] = order[b], order[a]
    return to.node("Transpose", [to.read(x)], perm=order)


def _permute(to: OnnxBuilder, node: Node) -> str:
    x = node.all_input_nodes[0]
    dims: Any = node.kwargs.get("dims", node.args[1:])
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    rank = len(meta.shape_of(x))
    return to.node("Transpose", [to.read(x)], perm=[operator.index(d) % rank for d in order])


def _layer_norm(to: OnnxBuilder, node: Node) -> str:
    x, shape = node.all_input_nodes[0], _argument(node, 1, "normalized_shape")
    weight, bias = _argument(node, 2, "weight"), _argument(node, 3, "bias")
    size = [shape] if isinstance(shape, int) else list(shape)
    scale = to.constant(np.ones(size, np.float32)) if weight is None else to.read(weight)
    operands = [to.read(x), scale, *([] if bias is None else [to.read(bias)])]
    epsilon = float(_argument(node, 4, "eps", 1e-5))
    return to.node("LayerNormalization", operands, axis=-len(size), epsilon=epsilon)


def _concat(to: OnnxBuilder, node: Node) -> str:
    tensors, axis = _argument(node, 0, "tensors"), _argument(node, 1, "dim", 0)
    rank = len(meta.shape_of(node))
    return to.node("Concat", [to.read(x) for x in tensors], axis=axis % rank)


FLOAT_EMITTERS: dict[str, FloatEmitter] = {
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "truediv": _binary("Div"),
    "pow": _binary("Pow"),
    "matmul": _binary("MatMul"),
    "bmm": _binary("MatMul"),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "neg": _unary("Neg"),
    "sqrt": _unary("Sqrt"),
    "log": _unary("Log"),
    "erf": _unary("Erf"),
    "relu": _unary("Relu"),
    "reciprocal": _unary("Reciprocal"),
    "softmax": _along_axis("Softmax"),
    "log_softmax": _along_axis("LogSoftmax"),
    "mean": _mean,
    "layer_norm": _layer_norm,
    "cat": _concat,
    "transpose": _transpose,
    "permute": _permute,
    **dict.fromkeys(
        ("reshape", "view", "flatten", "squeeze", "unsqueeze", "unflatten"),
        _reshape,
    ),
}
