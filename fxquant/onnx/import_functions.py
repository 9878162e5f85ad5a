"""Arithmetic and functions of one value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant.onnx.call import OnnxCall
from fxquant.onnx.reader import Importer, OnnxReader, tensor

# x * gate(x), as exporters write functions that ONNX did not have
_GATED = {torch.sigmoid: F.silu, F.hardsigmoid: F.hardswish}


def _unary(function: Callable[..., Any], **attributes: tuple[str, Any]) -> Importer:
    """A function with parameters: torch name = (ONNX attribute, its default)."""

    def build(reader: OnnxReader, call: OnnxCall) -> Node:
        given = {k: call.attribute(*source) for k, source in attributes.items()}
        return reader.call(function, reader.operand(call, 0), **given)

    return build


def _binary(op: Callable[..., Any]) -> Importer:
    def build(reader: OnnxReader, call: OnnxCall) -> Node:
        for position in (0, 1):
            if reader.is_constant(call, position):
                return _with_constant(reader, call, op, position)
        a, b = reader.operand(call, 0), reader.operand(call, 1)
        for x, gate in ((a, b), (b, a)):
            if op is operator.mul and gate.target in _GATED and gate.args[0] is x:
                return reader.call(_GATED[gate.target], x)  # type: ignore[index]
        return reader.call(op, a, b)

    return build


def _with_constant(reader: OnnxReader, call: OnnxCall, op: Any, position: int) -> Node:
    """A scalar stays a number; one number a channel becomes a batch norm, which fusion folds."""
    value, x = reader.constant(call, position), reader.operand(call, 1 - position)
    if value.size == 1 and (value.ndim <= 1 or value.ndim <= reader.rank(call, 1 - position)):
        number = float(value.reshape(()))
        return reader.call(op, x, number) if position == 1 else reader.call(op, number, x)
    reversible = op in (operator.add, operator.mul) or position == 1
    shape = reader.shape(call, 1 - position)
    if not (_a_channel(value, shape) and reversible and op is not operator.pow):
        return reader.call(op, reader.operand(call, 0), reader.operand(call, 1))
    flat = value.reshape(-1).astype(np.float32)
    scale = {operator.mul: flat, operator.truediv: 1 / flat}.get(op, np.ones_like(flat))
    shift = {operator.add: flat, operator.sub: -flat}.get(op, np.zeros_like(flat))
    norm = nn.BatchNorm2d(len(flat), eps=0.0)
    norm.weight, norm.bias = (nn.Parameter(tensor(v), requires_grad=False) for v in (scale, shift))
    return reader.layer(call, norm, x)


def _a_channel(value: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a constant has one number for each channel of an image, and does not enlarge it."""
    channel = (1, *shape[1:2], 1, 1)
    return len(shape) == 4 and value.ndim in (3, 4) and value.shape == channel[-value.ndim :]


def clip(reader: OnnxReader, call: OnnxCall) -> Node:
    """Clip with constant bounds, as operands or (until opset 10) attributes."""
    bounds = []
    for position, name in ((1, "min"), (2, "max")):
        value = reader.constant(call, position, call.attribute(name))
        bounds.append(None if value is None else float(np.asarray(value).reshape(())))
    x = reader.operand(call, 0)
    return x if bounds == [None, None] else reader.call(torch.clamp, x, *bounds)


def hard_sigmoid(reader: OnnxReader, call: OnnxCall) -> Node:
    """HardSigmoid: torch's if alpha and beta are its, else `clamp(alpha x + beta, 0, 1)`."""
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    x = reader.operand(call, 0)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return reader.call(F.hardsigmoid, x)
    scaled = reader.call(operator.add, reader.call(operator.mul, x, alpha), beta)
    return reader.call(torch.clamp, scaled, 0.0, 1.0)


def prelu(reader: OnnxReader, call: OnnxCall) -> Node:
    """PRelu with one slope, or one a channel."""
    slope = reader.constant(call, 1)
    rank = reader.rank(call, 0)
    per_channel = (slope.size, *(1,) * (rank - 2))
    if slope.size != 1 and slope.shape[-(rank - 1) :] != per_channel:
        raise call.unsupported(f"its slope has shape {slope.shape}")
    module = nn.PReLU(slope.size)
    module.weight = nn.Parameter(tensor(slope.reshape(-1)), requires_grad=False)
    return reader.layer(call, module, reader.operand(call, 0))


def total(reader: OnnxReader, call: OnnxCall) -> Node:
    """Sum of any number of values."""
    result = reader.operand(call, 0)
    for position in range(1, len(call.inputs)):
        result = reader.call(operator.add, result, reader.operand(call, position))
    return result


def softmax(function: Callable[..., Any]) -> Importer:
    """Softmax along one axis; before opset 13 along all axes from it on."""

    def build(reader: OnnxReader, call: OnnxCall) -> Node:
        rank = reader.rank(call, 0)
        axis = call.attribute("axis", -1 if call.opset >= 13 else 1) % rank
        if call.opset < 13 and any(d != 1 for d in reader.shape(call, 0)[axis + 1 :]):
            raise call.unsupported("it is over several axes at once")
        return reader.call(function, reader.operand(call, 0), dim=axis)

    return build


def gelu(reader: OnnxReader, call: OnnxCall) -> Node:
    """Gelu of opset 20."""
    kind = call.attribute("approximate", "none")
    return reader.call(F.gelu, reader.operand(call, 0), approximate=kind)


def unchanged(reader: OnnxReader, call: OnnxCall) -> Any:
    """Identity, Dropout, and Cast between float types."""
    if call.op == "Cast" and call.attribute("to") not in (1, 10, 11):
        raise call.unsupported("it casts a value to integers")
    if call.op == "Dropout" and reader.constant(call, 2, False):
        raise call.unsupported("it is in training mode")
    return reader.operand(call, 0)


IMPORTERS: dict[str, Importer] = {
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(operator.truediv),
    "Pow": _binary(operator.pow),
    "Sum": total,
    "Clip": clip,
    "Relu": _unary(F.relu),
    "LeakyRelu": _unary(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "PRelu": prelu,
    "Elu": _unary(F.elu, alpha=("alpha", 1.0)),
    "Selu": _unary(F.selu),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Softplus": _unary(F.softplus),
    "Mish": _unary(F.mish),
    "Gelu": gelu,
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Softmax": softmax(F.softmax),
    "LogSoftmax": softmax(F.log_softmax),
    "Identity": unchanged,
    "Dropout": unchanged,
    "Cast": unchanged,
}
