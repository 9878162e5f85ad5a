"""The float network a graph stands for, once channels of its values have been scaled.

A clamp at u of a value whose channels were divided by s_c (passes/equalize.py) is one at `u / s_c`
in channel c. Operators have one clamp for all channels: the loosest of these. In the quantized
network the end of the value's grid makes up for it. The float network has no grids: there every
channel is clamped at its own bounds on top.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxquant.ir import meta
from fxquant.ops.clamp import apply_clamp


def channel_bounds(node: Node) -> tuple[Tensor | None, Tensor | None]:
    """Lower and upper clamp of every channel of a float value, broadcast over it.

    None where it is open, and where it is 0: the operator's own is the same in all channels.
    """
    factors = meta.channel_factors(node)
    clamp: Any = node.kwargs.get("clamp")
    if factors is None or clamp is None:
        return None, None
    tighter = factors.min() / factors
    low, high = (tighter * bound if bound else None for bound in clamp)
    return low, high


def within_bounds(node: Node, value: Any) -> Any:
    """A float operator's result inside the clamp of each of its channels.

    Args:
        node: The operator.
        value: Its result as the operator computes it, changed in place.
    """
    low, high = channel_bounds(node)
    return value if low is None and high is None else value.clamp_(low, high)


def clamped(node: Node, value: Tensor) -> Tensor:
    """An operator's result inside its clamp and that of each of its channels.

    Args:
        node: The operator.
        value: Its result before the clamp, changed in place.
    """
    clamp: Any = node.kwargs.get("clamp")
    return within_bounds(node, apply_clamp(value, clamp))


class FloatNetwork(Interpreter):
    """Runs an ANNOTATED graph in float."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # would be appended to messages that say where already

    def run_node(self, n: Node) -> Any:
        """See Interpreter."""
        return within_bounds(n, super().run_node(n))
