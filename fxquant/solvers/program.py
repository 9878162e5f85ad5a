"""A region of the graph as a function of its inputs, its parameters and its grids.

The same operators run in float and simulated: what differs is which weights they get and what
`on_grid` does to a value. A result of an integer operator lies on its grid at once. A float
operator's result (and a network input) stays as it is; integer operators round it as they read it,
as in the Q/DQ graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxquant.ir import meta
from fxquant.ir.build import invoke
from fxquant.ir.floats import within_bounds

Parameters = Callable[[Node], tuple[Tensor, Tensor]]  # weight and bias of a layer
OnGrid = Callable[[str, Tensor], Tensor]  # name of the value that owns the grid, value


class Program:
    """Consecutive operators of a graph.

    Attributes:
        nodes: The operators, in execution order.
        inputs: Values they read from outside.
        outputs: Values that are read outside, or are results of the network. Of results that are
            integers (labels) those they are made of: there is nothing to learn from labels.
        layers: Weighted integer operators among them.
        gridded: Operators whose results have a grid of their own.
    """

    def __init__(self, gm: GraphModule, nodes: Sequence[Node]) -> None:
        self.gm, self.nodes = gm, tuple(nodes)
        inside = set(nodes)
        read = (s for n in nodes for s in n.all_input_nodes)
        outside = [s for s in read if s not in inside and s.op != "get_attr"]
        self.inputs = tuple(dict.fromkeys(outside))
        read_outside = (n for n in nodes if any(u not in inside for u in n.users))
        self.outputs = tuple(dict.fromkeys(o for n in read_outside for o in _of_floats(n, inside)))
        self.layers = tuple(n for n in nodes if meta.is_layer(n))
        quantized = (n for n in nodes if meta.quant(n) is not None)
        self.gridded = tuple(n for n in quantized if meta.grid_owner(n) is n)
        self._dead = self._last_uses()

    def _last_uses(self) -> list[list[str]]:
        """For every operator, the values nobody reads after it."""
        last: dict[Node, int] = {}
        for index, node in enumerate(self.nodes):
            last[node] = index
            values = [n for n in node.all_input_nodes if n.op != "get_attr"]
            last.update(dict.fromkeys(values, index))
        dead: list[list[str]] = [[] for _ in self.nodes]
        for node, index in last.items():
            if node not in self.outputs:
                dead[index].append(node.name)
        return dead

    def run(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Parameters | None = None,
        on_grid: OnGrid | None = None,
    ) -> dict[str, Tensor]:
        """The outputs by name.

        Args:
            inputs: By node name, `[B, ...]`.
            parameters: Weight and bias of a layer; default those of the float network.
            on_grid: Rounds a value to its grid; default none has one: the float network.
        """
        values: dict[str, Any] = dict(inputs)
        for node, dead in zip(self.nodes, self._dead, strict=True):
            plain = self.evaluate(node, values, parameters, on_grid)
            values[node.name] = self.settle(node, plain, on_grid)
            for name in dead:
                values.pop(name, None)
        return {n.name: values[n.name] for n in self.outputs}

    def evaluate(
        self,
        node: Node,
        values: Mapping[str, Any],
        parameters: Parameters | None = None,
        on_grid: OnGrid | None = None,
    ) -> Any:
        """One operator's result, not yet on its grid."""
        integer = meta.float_reason(node) is None

        def operand(n: Node) -> Any:
            if n.op == "get_attr":
                return meta.tensor_of(self.gm, n)
            return self.read(n, values[n.name], on_grid if integer else None)

        args, kwargs = map_arg(node.args, operand), map_arg(node.kwargs, operand)
        if parameters is not None and meta.is_layer(node):
            args = (args[0], *parameters(node), *args[3:])
        result = invoke(node, args, kwargs)
        return result if on_grid is not None else within_bounds(node, result)

    @staticmethod
    def read(node: Node, value: Any, on_grid: OnGrid | None) -> Any:
        """A value as an integer operator reads it."""
        unrounded = node.op == "placeholder" or meta.float_reason(node) is not None
        if on_grid is not None and unrounded and meta.quant(node) is not None:
            return on_grid(node.name, value)
        return value

    def settle(self, node: Node, value: Any, on_grid: OnGrid | None) -> Any:
        """An operator's result as its readers see it."""
        if on_grid is None or meta.float_reason(node) is not None or meta.quant(node) is None:
            return value
        definition = meta.opdef(node)
        if definition is not None and definition.moves:
            return value  # lies on the grid already
        return on_grid(meta.grid_owner(node).name, value)


def _of_floats(node: Node, inside: set[Node]) -> list[Node]:
    """A value; of a result of the network that is integer, the operands within a program."""
    dtype = node.meta.get("dtype")
    result = all(user.op == "output" for user in node.users if user not in inside)
    if not result or dtype is None or dtype.is_floating_point:
        return [node]
    operands = (s for s in node.all_input_nodes if s in inside)
    return [o for s in operands for o in _of_floats(s, inside)]
