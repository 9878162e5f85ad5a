"""Runs the float network and the Q/DQ graph side by side, and every operator on its own.

An operator is computed three times from the float network's values: with the quantized weight
alone, with its operands on their grids too, and with its result on its grid as well. The steps
between the three are the noise of the weight, of the operands, and of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.build import invoke
from fxquant.ir.floats import within_bounds
from fxquant.ir.frontend import capture, normalize
from fxquant.ops.arithmetic import requantize
from fxquant.ops.qdq import dequantize, dequantize_weight, quantize
from fxquant.passes.fuse import fuse
from fxquant.passes.residuals import insert_copy

_ROUNDING = (quantize, dequantize)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One value of the network for one batch, all of the same shape.

    Attributes:
        node: Its name.
        original: In the float network.
        simulated: In the quantized network.
        weight_only: From float operands, by the operator with its quantized weight.
        unrounded: From operands on their grids, before the result is rounded.
        isolated: The same, on the result's grid.
    """

    node: str
    original: Tensor
    simulated: Tensor
    weight_only: Tensor
    unrounded: Tensor
    isolated: Tensor


def float_graph(model: Any, inputs: tuple[Tensor, ...], gm: GraphModule) -> GraphModule:
    """The float model as the graph that was quantized, with the same node names.

    Args:
        model: The float model.
        inputs: A batch of inputs.
        gm: The calibrated graph.

    Raises:
        ConfigError: It is another model.
    """
    example = tuple(x[:1] for x in inputs)
    original = fuse(normalize(capture(model, example), example))
    nodes = {n.name: n for n in original.graph.nodes}
    for copy in (n for n in gm.graph.nodes if n.target is requantize):
        source = nodes.get(copy.all_input_nodes[0].name)
        if source is not None:
            nodes[copy.name] = insert_copy(original, source)
    missing = [n.name for n in gm.graph.nodes if n.op.startswith("call_") and n.name not in nodes]
    if missing:
        raise ConfigError(
            f"the model has no value {missing[0]}",
            why="it is not the model that was quantized",
            remedy="pass the float model that was given to fxquant.prepare",
        )
    return original


class Probe:
    """The QDQ graph with, for each value of the network, the node that holds it on its grid.

    Args:
        gm: QDQ graph.
        original: The float network; without it the dequantized weights stand for the float ones.
    """

    def __init__(self, gm: GraphModule, original: GraphModule | None) -> None:
        self.gm, self.original = gm, original
        nodes = [n for n in gm.graph.nodes if n.op not in ("get_attr", "output")]
        rendering = (*_ROUNDING, dequantize_weight)
        self.nodes = {n.name: n for n in nodes if n.target not in rendering}
        self.results = {name: _on_grid(n) for name, n in self.nodes.items()}

    def observe(self, inputs: tuple[Tensor, ...]) -> Iterator[Observation]:
        """Every float value of the network for a batch, in execution order."""
        reference = _Values(self.original or self.gm, bypass=self.original is None)
        simulator = _Values(self.gm, bypass=False)
        reference.run(*inputs)
        simulator.run(*inputs)
        floats = {name: reference.values[name] for name in self.results}
        if self.original is not None:
            floats |= self._equalized(floats)
        for name, result in self.results.items():
            original = floats[name]
            if not isinstance(original, Tensor) or not original.is_floating_point():
                continue
            weight_only, unrounded = self._steps(self.nodes[name], floats)
            isolated = unrounded if result.name == name else _rounded(result, unrounded)
            simulated = simulator.values[result.name]
            yield Observation(name, original, simulated, weight_only, unrounded, isolated)

    def _equalized(self, floats: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values of the original model in the units of the network, where it was equalized."""
        factors = {n.name: meta.channel_factors(n) for n in self.gm.graph.nodes}
        return {n: floats[n] / f for n, f in factors.items() if f is not None and n in floats}

    def _steps(self, node: Node, floats: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The operator on float operands, and on operands that lie on their grids."""
        if node.op == "placeholder":
            return floats[node.name], floats[node.name]
        unrounded = self._call(node, floats, rounding=True)
        changed = any(n.target is dequantize_weight for n in node.all_input_nodes)
        if self.original is None or not changed:
            return floats[node.name], unrounded
        return self._call(node, floats, rounding=False), unrounded

    def _call(self, node: Node, floats: Mapping[str, Any], rounding: bool) -> Any:
        def operand(source: Node) -> Any:
            if source.op == "get_attr":
                return meta.tensor_of(self.gm, source)
            if source.name in floats:
                return floats[source.name]
            if source.target in _ROUNDING and not rounding:
                return operand(source.all_input_nodes[0])
            return self._call(source, floats, rounding)

        result = invoke(node, map_arg(node.args, operand), map_arg(node.kwargs, operand))
        return result if rounding else within_bounds(node, result)


class _Values(Interpreter):
    """Runs a graph and keeps every value; QDQ nodes are passed through if `bypass`."""

    def __init__(self, gm: GraphModule, bypass: bool) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.bypass = bypass
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node and keep its value."""
        if self.bypass and n.target in _ROUNDING:
            value = self.env[n.all_input_nodes[0]]
        else:
            value = super().run_node(n)
            value = within_bounds(n, value) if self.bypass else value
        if n.op != "output":
            self.values[n.name] = value
        return value


def _on_grid(node: Node) -> Node:
    """The value after its quantize/dequantize pair, or the value itself."""
    for codes in node.users:
        if codes.target is quantize:
            return next(iter(codes.users), node)
    return node


def _rounded(result: Node, value: Tensor) -> Tensor:
    """A value on its grid, by the pair of nodes that ends in `result`."""
    grid: Any = result.all_input_nodes[0].kwargs
    codes = quantize(value, **grid)
    return dequantize(codes, scale=grid["scale"], zero_point=grid["zero_point"])
