"""Sums and products: of two values, of a value and a constant, and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.ir.frontend.call import Call
from fxquant.ir.meta import opdef, shape_of, tensor_of
from fxquant.ops import arithmetic, elementwise
from fxquant.ops.normalization import batch_norm

Scalar = int | float


def _is_value(operand: Any) -> bool:
    return isinstance(operand, Node) and operand.op != "get_attr"


def _broadcasts(call: Call, a: Node, b: Node) -> bool:
    """Integer kernels take equal shapes, or one operand `[N, C, 1, 1]` against an image."""
    sa, sb = shape_of(a), shape_of(b)
    if sa == sb:
        return True
    small, big = sorted((sa, sb), key=lambda s: (s[2:] != (1, 1), s))
    return len(sa) == len(sb) == 4 and small[2:] == (1, 1) and small[:2] == big[:2]


def _constant(call: Call, x: Any, operand: Any) -> float | Tensor | None:
    """What a value meets, if it is no value: one number, or a tensor `[C]` with one a channel.

    Of what is computed from parameters, one element that does not add axes counts as a number.
    """
    if not _is_value(x):
        return None
    if isinstance(operand, Scalar):
        return float(operand)
    if not isinstance(operand, Node) or operand.op != "get_attr":
        return None
    value = tensor_of(call.builder.root, operand).detach()
    if value.dtype != torch.float32:
        return None
    if value.numel() == 1 and value.ndim <= len(shape_of(x)):
        return float(value)
    return value.reshape(-1) if _by_channel(x, value) else None


def _by_channel(x: Node, constant: Tensor) -> bool:
    """Whether a constant has a number for each channel of a quantized image.

    Not of an input or a value in float: preparing images in float loses nothing.
    """
    quantized = opdef(x) is not None or x.target is batch_norm
    if not quantized or len(shape_of(x)) != 4:
        return False
    shape = (1,) * (4 - constant.ndim) + tuple(constant.shape)
    return shape == (1, shape_of(x)[1], 1, 1)


def _line(call: Call, x: Node, scale: float | Tensor, offset: float | Tensor) -> Node:
    """`x * scale + offset`: a table; by channels a batch norm, which layers take up."""
    if not isinstance(scale, Tensor) and not isinstance(offset, Tensor):
        return call.emit(elementwise.affine, x, scale=scale, offset=offset)
    named = {"mean": 0.0, "variance": 1.0, "scale": scale, "offset": offset}
    tensors = [
        call.builder.tensor(
            torch.as_tensor(value, dtype=torch.float32).expand(shape_of(x)[1]).clone(),
            f"{call.name}_{name}",
        )
        for name, value in named.items()
    ]
    return call.emit(batch_norm, x, *tensors, eps=0.0)


def add(call: Call, input: Any, other: Any, alpha: Scalar = 1) -> Any:
    """`input + alpha * other`."""
    own, its = 1.0, float(alpha)
    for x, operand, a, b in ((input, other, own, its), (other, input, its, own)):
        constant = _constant(call, x, operand)
        if constant is not None:
            return _line(call, x, a, b * constant)
    if _is_value(input) and _is_value(other) and _broadcasts(call, input, other):
        scaled = other if alpha == 1 else _line(call, other, its, 0.0)
        return call.emit(arithmetic.add, input, scaled)
    return NotImplemented


def sub(call: Call, input: Any, other: Any, alpha: Scalar = 1) -> Any:
    """`input - alpha * other`."""
    return add(call, input, other, -alpha)


def rsub(call: Call, input: Any, other: Any, alpha: Scalar = 1) -> Any:
    """`other - alpha * input`."""
    return add(call, other, input, -alpha)


def mul(call: Call, input: Any, other: Any) -> Any:
    """`input * other`."""
    for x, operand in ((input, other), (other, input)):
        constant = _constant(call, x, operand)
        if constant is not None:
            return _line(call, x, constant, 0.0)
    if _is_value(input) and _is_value(other) and _broadcasts(call, input, other):
        return call.emit(arithmetic.mul, input, other)
    return NotImplemented


def div(call: Call, input: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """`input / constant`."""
    constant = _constant(call, input, other)
    if constant is None or rounding_mode is not None:
        return NotImplemented
    if not torch.as_tensor(constant).all():  # one of them is 0
        return NotImplemented
    return _line(call, input, 1.0 / constant, 0.0)


def neg(call: Call, input: Node) -> Any:
    """`-input`."""
    return _line(call, input, -1.0, 0.0)


def power(call: Call, input: Any, exponent: Any) -> Any:
    """`input ** scalar`."""
    if _is_value(input) and isinstance(exponent, Scalar):
        return call.emit(elementwise.power, input, exponent=float(exponent))
    return NotImplemented


def cat(call: Call, tensors: Sequence[Any], dim: int = 0) -> Any:
    """torch.cat of values; concatenation along the batch stays in float."""
    values = list(tensors)
    if not all(_is_value(v) for v in values):
        return NotImplemented
    if len(values) == 1:
        return values[0]
    rank = len(shape_of(values[0]))
    axis = dim % rank
    if axis == 0 or rank == 1:
        return NotImplemented
    return call.emit(arithmetic.concat, values, axis=axis)


HANDLERS = {
    "add": add,
    "iadd": add,
    "sub": sub,
    "isub": sub,
    "subtract": sub,
    "rsub": rsub,
    "mul": mul,
    "imul": mul,
    "multiply": mul,
    "div": div,
    "truediv": div,
    "itruediv": div,
    "neg": neg,
    "pow": power,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
}
