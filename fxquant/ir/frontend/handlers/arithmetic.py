"""Sums and products: of two values, of a value and a scalar, and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from fxquant.ir.frontend.call import Call
from fxquant.ir.meta import shape_of
from fxquant.ops import arithmetic, elementwise

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


def add(call: Call, input: Any, other: Any, alpha: Scalar = 1) -> Any:
    """`input + alpha * other`."""
    if _is_value(input) and isinstance(other, Scalar):
        return call.emit(elementwise.affine, input, scale=1.0, offset=float(alpha * other))
    if _is_value(other) and isinstance(input, Scalar):
        return call.emit(elementwise.affine, other, scale=float(alpha), offset=float(input))
    if _is_value(input) and _is_value(other) and alpha == 1 and _broadcasts(call, input, other):
        return call.emit(arithmetic.add, input, other)
    return NotImplemented


def sub(call: Call, input: Any, other: Any, alpha: Scalar = 1) -> Any:
    """`input - alpha * other` with a scalar on one side."""
    if _is_value(input) and isinstance(other, Scalar):
        return call.emit(elementwise.affine, input, scale=1.0, offset=-float(alpha * other))
    if _is_value(other) and isinstance(input, Scalar):
        return call.emit(elementwise.affine, other, scale=-float(alpha), offset=float(input))
    return NotImplemented


def mul(call: Call, input: Any, other: Any) -> Any:
    """`input * other`."""
    if _is_value(input) and isinstance(other, Scalar):
        return call.emit(elementwise.affine, input, scale=float(other), offset=0.0)
    if _is_value(other) and isinstance(input, Scalar):
        return call.emit(elementwise.affine, other, scale=float(input), offset=0.0)
    if _is_value(input) and _is_value(other) and _broadcasts(call, input, other):
        return call.emit(arithmetic.mul, input, other)
    return NotImplemented


def div(call: Call, input: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """`input / scalar`."""
    if _is_value(input) and isinstance(other, Scalar) and rounding_mode is None:
        return call.emit(elementwise.affine, input, scale=1.0 / float(other), offset=0.0)
    return NotImplemented


def neg(call: Call, input: Node) -> Any:
    """`-input`."""
    return call.emit(elementwise.affine, input, scale=-1.0, offset=0.0)


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
