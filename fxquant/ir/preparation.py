"""Preparing an input: float arithmetic with constants before anything else, as in normalizing.

With one constant a channel it stays in float: the input is rounded to codes once, when it is
prepared. (With one number for all it is a table of codes, which loses nothing.)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

PREPARES_INPUT = "prepares an input"
REVERSED = (torch.rsub, "rsub")  # take their operands the other way round
_SPELLINGS: dict[Any, tuple[Any, ...]] = {
    operator.add: (torch.add, "add"),
    operator.sub: (torch.sub, torch.subtract, "sub", "subtract", *REVERSED),
    operator.mul: (torch.mul, torch.multiply, "mul", "multiply"),
    operator.truediv: (torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"),
}
FUNCTIONS = {
    spelling: function
    for function, others in _SPELLINGS.items()
    for spelling in (function, *others)
}


def prepares_input(node: Node) -> bool:
    """Whether a node is float arithmetic of an input and constants."""
    if node.op not in ("call_function", "call_method") or node.target not in FUNCTIONS:
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
