"""Float arithmetic with a constant, as in normalizing the input: which nodes that is.

It needs no float compiler: each node is one float32 operation an element, correctly rounded
everywhere, and has a kernel (`emit/float_arithmetic.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.ir.preparation import FUNCTIONS, REVERSED, operands
from tvm_backend.graph_view import dtype_of


def is_arithmetic(node: Node, constants: Mapping[Node, Tensor]) -> bool:
    """Whether a node is a float32 sum, difference, product or quotient with a constant.

    Args:
        node: Any node.
        constants: Nodes that do not depend on the input.
    """
    called = node.op in ("call_function", "call_method") and node.target in FUNCTIONS
    if not called or dtype_of(node) != torch.float32:
        return False
    both = operands(node)
    values = [a for a in both if isinstance(a, Node) and a not in constants]
    others = [a for a in both if a not in values]
    if len(values) != 1 or len(others) != 1:
        return False
    (value,), (other,) = values, others
    if dtype_of(value) != torch.float32 or value.meta["shape"] != node.meta["shape"]:
        return False
    if isinstance(other, Node):
        return constants[other].dtype == torch.float32
    return isinstance(other, (int, float)) and not isinstance(other, bool)


def spell_alike(graph_module: GraphModule, constants: Mapping[Node, Tensor]) -> None:
    """Make calls of the operator module of all such nodes, in place."""
    for node in graph_module.graph.nodes:
        if is_arithmetic(node, constants):
            a, b = operands(node)
            node.args, node.kwargs = ((b, a) if node.target in REVERSED else (a, b)), {}
            node.op, node.target = "call_function", FUNCTIONS[node.target]
