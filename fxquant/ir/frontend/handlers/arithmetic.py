"""Sums and products: of two values, of a value and a constant, and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.ir.frontend.call import Call
from fxquant.ir.meta import opdef, shape_of
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


def _constant(call: Call, operand: Any) -> Tensor | None:
    """The tensor of a parameter or of what is computed from parameters."""
    if not isinstance(operand, Node) or operand.op != "get_attr":
        return None
    value = getattr(call.builder.root, str(operand.target)).detach()
    return value if value.dtype == torch.float32 else None


def _scalar(call: Call, x: Any, operand: Any) -> float | None:
    """A number, or a constant of one element that does not add axes to a value."""
    if not _is_value(x):
        return None
    if isinstance(operand, Scalar):
        return float(operand)
    value = _constant(call, operand)
    if value is None or value.numel() != 1 or value.ndim > len(shape_of(x)):
        return None
    return float(value)


def _channels(call: Call, x: Any, operand: Any) -> Tensor | None:
    """A constant `[C]` with a number for each channel of a value.

    Not of an input or a value in float: preparing images in float loses nothing.
    """
    value = _constant(call, operand)
    quantized = _is_value(x) and (opdef(x) is not None or x.target is batch_norm)
    if value is None or not quantized or len(shape_of(x)) != 4:
        return None
    shape = (1,) * (4 - value.ndim) + tuple(value.shape)
    return value.reshape(-1) if shape == (1, shape_of(x)[1], 1, 1) else None


def _affine(call: Call, x: Node, scale: float, offset: float) -> Node:
    return call.emit(elementwise.affine, x, scale=scale, offset=offset)


def _affine_channels(call: Call, x: Node, scale: Tensor, offset: Tensor) -> Node:
    """`x * scale + offset` by channels, as a batch norm, which layers take up."""
    values = {"mean": torch.zeros_like(scale), "variance": torch.ones_like(scale),
              "scale": scale, "offset": offset}  # fmt: skip
    tensors = [call.builder.tensor(v, f"{call.name}_{name}") for name, v in values.items()]
    return call.emit(batch_norm, x, *tensors, eps=0.0)


def add(call: Call, input: Any, other: Any, alpha: Scalar = 1) -> Any:
    """`input + alpha * other`."""
    for x, operand, factors in ((input, other, (1.0, alpha)), (other, input, (alpha, 1.0))):
        own, its = map(float, factors)
        number = _scalar(call, x, operand)
        if number is not None:
            return _affine(call, x, own, its * number)
        channels = _channels(call, x, operand)
        if channels is not None:
            return _affine_channels(call, x, torch.full_like(channels, own), its * channels)
    if _is_value(input) and _is_value(other) and _broadcasts(call, input, other):
        scaled = other if alpha == 1 else _affine(call, other, float(alpha), 0.0)
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
        number = _scalar(call, x, operand)
        if number is not None:
            return _affine(call, x, number, 0.0)
        channels = _channels(call, x, operand)
        if channels is not None:
            return _affine_channels(call, x, channels, torch.zeros_like(channels))
    if _is_value(input) and _is_value(other) and _broadcasts(call, input, other):
        return call.emit(arithmetic.mul, input, other)
    return NotImplemented


def div(call: Call, input: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """`input / constant`."""
    if rounding_mode is not None:
        return NotImplemented
    number = _scalar(call, input, other)
    if number:
        return _affine(call, input, 1.0 / number, 0.0)
    channels = _channels(call, input, other)
    if channels is not None and bool((channels != 0).all()):
        return _affine_channels(call, input, 1.0 / channels, torch.zeros_like(channels))
    return NotImplemented


def neg(call: Call, input: Node) -> Any:
    """`-input`."""
    return _affine(call, input, -1.0, 0.0)


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
