"""Preparing an input: float arithmetic with constants before anything else, as in normalizing.

With one constant a channel it stays in float: the input is rounded to codes once, when it is
prepared. (With one number for all it is a table of codes, which loses nothing.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fxquant.ir.meta import opdef

PREPARES_INPUT = "prepares an input"
_NAMES = frozenset(
    "add iadd sub isub subtract rsub mul imul multiply div truediv itruediv divide".split()
)


def prepares_input(node: Node) -> bool:
    """Whether a node is float arithmetic of an input and constants."""
    name = getattr(node.target, "__name__", node.target)
    called = node.op in ("call_function", "call_method") and opdef(node) is None
    if not called or name not in _NAMES:
        return False
    both = operands(node)
    values = [a for a in both if isinstance(a, Node) and a.op != "get_attr"]
    if len(both) != 2 or len(values) != 1:
        return False
    (value,) = values
    is_input = value.op == "placeholder" and value.meta.get("dtype") == torch.float32
    return is_input or prepares_input(value)


def operands(node: Node) -> tuple[Any, ...]:
    """The operands of a sum or product, empty if it has other arguments as well."""
    others = node.kwargs.keys() - {"other"}
    return () if others else (*node.args, *node.kwargs.values())
