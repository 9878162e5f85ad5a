"""Activations. relu, relu6, hardtanh and clamp become one operator; the others keep their name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fxquant.ir.frontend.call import Call
from fxquant.ir.meta import shape_of
from fxquant.ops import elementwise


def _clamp(call: Call, input: Node, lower: Any, upper: Any) -> Any:
    if isinstance(lower, Node) or isinstance(upper, Node):
        return NotImplemented
    bounds = tuple(None if b is None else float(b) for b in (lower, upper))
    return call.emit(elementwise.clamp, input, clamp=bounds)


def relu(call: Call, input: Node, inplace: bool = False) -> Any:
    """max(x, 0)."""
    return _clamp(call, input, 0.0, None)


def relu6(call: Call, input: Node, inplace: bool = False) -> Any:
    """min(max(x, 0), 6)."""
    return _clamp(call, input, 0.0, 6.0)


def hardtanh(
    call: Call, input: Node, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    """Clamp to [min_val, max_val]."""
    return _clamp(call, input, min_val, max_val)


def clamp(call: Call, input: Node, min: Any = None, max: Any = None) -> Any:
    """torch.clamp with scalar bounds."""
    return _clamp(call, input, min, max)


def clamp_min(call: Call, input: Node, min: Any) -> Any:
    """torch.clamp_min."""
    return _clamp(call, input, min, None)


def clamp_max(call: Call, input: Node, max: Any) -> Any:
    """torch.clamp_max."""
    return _clamp(call, input, None, max)


def prelu(call: Call, input: Node, weight: Node) -> Any:
    """PReLU; rank 3 gets a row axis, so that channels stay on axis 1 of an image."""
    if weight.op != "get_attr":
        return NotImplemented
    shape = shape_of(input)
    if len(shape) == 3:
        lifted = call.reshape(input, (shape[0], shape[1], 1, shape[2]))
        return call.reshape(call.emit(elementwise.prelu, lifted, weight), shape)
    return call.emit(elementwise.prelu, input, weight)


def _table(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A one-operand function with the given scalar parameters; `inplace` is dropped."""

    def handler(call: Call, input: Node, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip((*names, "inplace"), args, strict=False)) | kwargs
        given.pop("inplace", None)
        static = not any(isinstance(v, Node) for v in given.values())
        if not isinstance(input, Node) or not static or not given.keys() <= set(names):
            return NotImplemented
        return call.emit(function, input, **given)

    return handler


def elu(call: Call, input: Node, alpha: float = 1.0, *rest: Any, **kwargs: Any) -> Any:
    """ELU; aten's extra scale arguments must be 1."""
    extra = [r for r in rest if not isinstance(r, bool)]
    if any(r != 1 for r in extra) or any(kwargs.get(k, 1) != 1 for k in ("scale", "input_scale")):
        return NotImplemented
    return call.emit(F.elu, input, alpha=alpha)


HANDLERS = {
    "relu": relu,
    "relu6": relu6,
    "hardtanh": hardtanh,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": clamp_min,
    "clamp_max": clamp_max,
    "prelu": prelu,
    "elu": elu,
    "leaky_relu": _table(F.leaky_relu, "negative_slope"),
    "selu": _table(F.selu),
    "hardswish": _table(F.hardswish),
    "silu": _table(F.silu),
    "swish": _table(F.silu),
    "hardsigmoid": _table(F.hardsigmoid),
    "gelu": _table(F.gelu, "approximate"),
    "mish": _table(F.mish),
    "softplus": _table(F.softplus, "beta", "threshold"),
    "logsigmoid": _table(F.logsigmoid),
    "sigmoid": _table(torch.sigmoid),
    "tanh": _table(torch.tanh),
    "abs": _table(torch.abs),
    "exp": _table(torch.exp),
    "square": _table(torch.square),
}
