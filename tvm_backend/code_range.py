"""The largest code a value of the graph can hold: what its grid, not its storage, allows.

7-bit activations are stored in bytes like 8-bit ones; kernels with int16 chains need to know.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Node

from fxquant.numerics import reference
from tvm_backend.emit.table import MOVES
from tvm_backend.graph_view import bind

LARGEST = 255


def largest_code(node: Node, constants: Mapping[Node, Tensor]) -> int:
    """Upper bound of a node's uint8 codes; 255 where nothing is known, as for network inputs.

    Args:
        node: A node of the INTEGER graph that makes codes.
        constants: Nodes that do not depend on the input, with their values.
    """
    below = 0
    while node.op == "call_function" and node not in constants:
        arguments = bind(node)
        if "qmax" in arguments:
            return max(below, int(arguments["qmax"]))
        if node.target == reference.lookup:
            table = arguments["table"]
            return max(below, int(constants[table].max())) if table in constants else LARGEST
        if node.target not in MOVES and node.target != reference.max_pool2d:
            return LARGEST
        below = max(below, int(arguments.get("value", 0)))
        node = arguments["x"]
    return LARGEST
