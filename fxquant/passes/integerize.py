"""Replace every operator by its reference operator on integers.

Before: CALIBRATED: weights are integer codes, grids are in the metadata.
After:  INTEGER: codes flow between `reference.*` calls; every number a kernel needs is an
        argument of its node. `quantize`/`dequantize` stand only at the network's edges and around
        operators that stay in float.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxquant.ir import meta
from fxquant.ir.build import GraphBuilder
from fxquant.numerics import reference
from fxquant.numerics.types import QTensor
from fxquant.numerics.width import WIDTH_8
from fxquant.ops import Input, IntegerCall, OpDef, Operand, QuantCall


def integerize(gm: GraphModule) -> GraphModule:
    """The INTEGER graph of a calibrated graph, which is left as it is.

    Raises:
        NumericsError: A layer's numbers leave the domain of the integer arithmetic.
    """
    return _Integerizer(gm).run()


class _Integerizer:
    """Two carriers of each value, made where needed: integer codes and float."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm, self.builder = gm, GraphBuilder()
        self.codes: dict[Node, Node] = {}
        self.floats: dict[Node, Node] = {}

    def run(self) -> GraphModule:
        outputs: Any = None
        for node in self.gm.graph.nodes:
            if node.op == "output":
                outputs = map_arg(node.args[0], self._float)
            elif node.op == "placeholder":
                shape, dtype = meta.shape_of(node), meta.dtype_of(node)
                self.floats[node] = self.builder.placeholder(node.name, shape, dtype)
            elif node.op == "get_attr":
                continue  # registered by the operator that reads it
            elif (definition := meta.opdef(node)) and meta.runs_on_integers(node):
                self._integer_call(node, definition)
            else:
                self.floats[node] = self._float_call(node)
        return self.builder.finish(outputs)

    def _float_call(self, node: Node) -> Node:
        args, kwargs = map_arg(node.args, self._float), map_arg(node.kwargs, self._float)
        new = self.builder.graph.create_node(node.op, node.target, args, kwargs, node.name)
        new.meta.update({k: v for k, v in node.meta.items() if k != "quant"})
        return new

    def _float(self, node: Node) -> Node:
        """The value as floats."""
        if node.op == "get_attr":
            value = meta.tensor_of(self.gm, node)
            if meta.quant(node) is not None:  # shared with a layer that runs on integers
                value = QTensor(value, meta.qparams(node)).dequantize()
            return self.builder.tensor(value, str(node.target))
        if node not in self.floats:
            grid = Operand.of(meta.qparams(node))
            kwargs = {"scale": grid.scale, "zero_point": grid.zero_point}
            self.floats[node] = self._call(
                node, reference.dequantize, (self.codes[node],), kwargs, f"{node.name}_dequantize"
            )
        return self.floats[node]

    def _codes(self, node: Node) -> Node:
        """The value as integer codes."""
        if node not in self.codes:
            grid = Operand.of(meta.qparams(node))
            kwargs = {"scale": grid.scale, "zero_point": grid.zero_point,
                      "qmin": grid.qmin, "qmax": grid.qmax}  # fmt: skip
            if grid.width is not WIDTH_8:
                kwargs["width"] = grid.width.bits
            self.codes[node] = self._call(
                node, reference.quantize, (self.floats[node],), kwargs, f"{node.name}_quantize"
            )
        return self.codes[node]

    def _call(self, node: Node, function: Any, args: Any, kwargs: Any, name: str) -> Node:
        new = self.builder.call(function, args, kwargs, name)
        meta.set_provenance(new, meta.provenance(node))
        return new

    def _integer_call(self, node: Node, definition: OpDef) -> None:
        bound = definition.bind(node)
        integer = definition.integer(self._quant_call(node, definition, bound))
        names = list(inspect.signature(integer.function).parameters)
        args = tuple(self._argument(node, bound, a, names[i]) for i, a in enumerate(integer.args))
        if integer.float_output is None:
            new = self._call(node, integer.function, args, dict(integer.kwargs), node.name)
            self.codes[node] = new
            return
        name = f"{node.name}_accumulate"
        acc = self._call(node, integer.function, args, dict(integer.kwargs), name)
        self.floats[node] = self._dequantized(node, acc, integer)

    def _dequantized(self, node: Node, acc: Node, integer: IntegerCall) -> Node:
        output = integer.float_output
        assert output is not None
        scale = self.builder.tensor(output.scale, f"{node.name}_scale")
        lower, upper = output.clamp
        kwargs = {"axis": output.axis, "lower": lower, "upper": upper}
        return self._call(node, reference.dequantize_accumulator, (acc, scale), kwargs, node.name)

    def _quant_call(self, node: Node, definition: OpDef, bound: dict[str, Any]) -> QuantCall:
        inputs = {
            name: _grids(value) for name, value in bound.items() if name in definition.operands
        }
        weight = None
        if definition.weighted:
            source = bound["weight"]
            weight = QTensor(meta.tensor_of(self.gm, source), meta.qparams(source))
        rest = {
            name: meta.tensor_of(self.gm, value).detach() if isinstance(value, Node) else value
            for name, value in bound.items()
            if name not in definition.operands and not (definition.weighted and name == "weight")
        }
        quant = meta.quant(node)
        output = None if quant is None or meta.delivers_float(node) else (
            Operand.of(meta.qparams(node)))  # fmt: skip
        return QuantCall(node.name, rest, inputs, weight, output, len(meta.shape_of(node)))

    def _argument(self, node: Node, bound: dict[str, Any], argument: Any, label: str) -> Any:
        """A reference operator's argument: codes of an operand, or a registered tensor."""
        if isinstance(argument, Input):
            value = bound[argument.name]
            return self._codes(value if argument.index is None else value[argument.index])
        if isinstance(argument, tuple):
            return [self._argument(node, bound, a, label) for a in argument]
        if isinstance(argument, Tensor):
            return self.builder.tensor(argument, f"{node.name}_{label}")
        return argument


def _grids(operand: Any) -> Operand | tuple[Operand, ...]:
    """Grid of an activation operand, a tuple for a list operand."""
    if isinstance(operand, Node):
        return Operand.of(meta.qparams(operand))
    return tuple(Operand.of(meta.qparams(n)) for n in operand)
