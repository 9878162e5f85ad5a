"""Functions of one value in ONNX: `ACTIVATIONS`, one row a function.

What ONNX has no operator for in the opset that is written is composed of smaller ones; they stay
in float between DequantizeLinear and QuantizeLinear, as the function itself would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from fxquant.ops import elementwise

if TYPE_CHECKING:
    from fxquant.onnx.export import OnnxBuilder

Arguments = Mapping[str, Any]
Activation = Callable[["OnnxBuilder", str, Arguments], str]


def scalar(to: OnnxBuilder, value: float) -> str:
    """A float32 constant of rank 0."""
    return to.constant(np.array(value, np.float32))


def _plain(op: str, **attributes: Any) -> Activation:
    return lambda to, x, args: to.node(op, [x], **attributes)


def _leaky_relu(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("LeakyRelu", [x], alpha=float(args.get("negative_slope", 0.01)))


def _elu(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("Elu", [x], alpha=float(args.get("alpha", 1.0)))


def _silu(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("Mul", [x, to.node("Sigmoid", [x])])


def _mish(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("Mul", [x, to.node("Tanh", [to.node("Softplus", [x])])])


def _softplus(to: OnnxBuilder, x: str, args: Arguments) -> str:
    """torch's threshold only avoids overflow: beyond it the function is the identity anyway."""
    beta = float(args.get("beta", 1.0))
    if beta == 1.0:
        return to.node("Softplus", [x])
    y = to.node("Softplus", [to.node("Mul", [x, scalar(to, beta)])])
    return to.node("Div", [y, scalar(to, beta)])


def _logsigmoid(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("Neg", [to.node("Softplus", [to.node("Neg", [x])])])


def _gelu(to: OnnxBuilder, x: str, args: Arguments) -> str:
    """`x/2 (1 + erf(x/sqrt 2))`, or its approximation by tanh."""
    if args.get("approximate", "none") == "tanh":
        cube = to.node("Mul", [to.node("Mul", [x, x]), x])
        inner = to.node("Add", [x, to.node("Mul", [cube, scalar(to, 0.044715)])])
        gate = to.node("Tanh", [to.node("Mul", [inner, scalar(to, math.sqrt(2 / math.pi))])])
    else:
        gate = to.node("Erf", [to.node("Mul", [x, scalar(to, math.sqrt(0.5))])])
    half = to.node("Mul", [x, scalar(to, 0.5)])
    return to.node("Mul", [half, to.node("Add", [gate, scalar(to, 1.0)])])


def _square(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("Mul", [x, x])


def _affine(to: OnnxBuilder, x: str, args: Arguments) -> str:
    y = x if args["scale"] == 1 else to.node("Mul", [x, scalar(to, args["scale"])])
    return y if args["offset"] == 0 else to.node("Add", [y, scalar(to, args["offset"])])


def _power(to: OnnxBuilder, x: str, args: Arguments) -> str:
    return to.node("Pow", [x, scalar(to, args["exponent"])])


ACTIVATIONS: dict[Callable[..., Any], Activation] = {
    elementwise.affine: _affine,
    elementwise.power: _power,
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    F.selu: _plain("Selu"),
    F.hardswish: _plain("HardSwish"),
    F.silu: _silu,
    F.hardsigmoid: _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    F.gelu: _gelu,
    F.mish: _mish,
    F.softplus: _softplus,
    F.logsigmoid: _logsigmoid,
    torch.sigmoid: _plain("Sigmoid"),
    torch.tanh: _plain("Tanh"),
    torch.abs: _plain("Abs"),
    torch.exp: _plain("Exp"),
    torch.square: _square,
}
