"""Forms of operators that write into an operand, without doing so.

Before: x.sub_(y), F.silu(x, inplace=True), x += y, aten.sub_.Tensor(x, y)
After:  x.sub(y),  F.silu(x, inplace=False), x + y,  aten.sub.Tensor(x, y)

Operators of the dialect never write into operands; this is for those that stay in float.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import CaptureError

_OpOverload = type(torch.ops.aten.relu.default)
_OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}


def out_of_place(
    target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target and arguments of the same operator that leaves its operands alone.

    Args:
        target: Method name, function or operator overload that writes into an operand.
        args: Its positional arguments.
        kwargs: The others.
        where: The place in the model, for the message.

    Raises:
        CaptureError: There is no such form.
    """
    plain = _plain(target)
    if plain is not None:
        return plain, args, dict(kwargs)
    if not isinstance(target, str | _OpOverload) and "inplace" in _parameters(target):
        bound = inspect.signature(target).bind(*args, **kwargs)
        bound.arguments["inplace"] = False
        return target, bound.args, bound.kwargs
    raise CaptureError(
        f"{getattr(target, '__name__', target)} changes a tensor in place",
        where=where,
        why="values of a graph do not share memory, and this operation has no other form",
        remedy="compute a new tensor instead, e.g. with torch.where or torch.cat",
    )


def _plain(target: Any) -> Any:
    """The namesake of an operator without an underscore, None if there is none."""
    if isinstance(target, _OpOverload):
        space, name = target._schema.name.split("::")
        packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
        return getattr(packet, target._overloadname, None) if name.endswith("_") else None
    if isinstance(target, str):
        plain = target.removesuffix("_")
        return plain if plain != target and hasattr(Tensor, plain) else None
    if target in _OPERATORS:
        return _OPERATORS[target]
    name = getattr(target, "__name__", "")
    if not name.endswith("_"):
        return None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built in, without a signature
        return ()
