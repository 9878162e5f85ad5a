"""What the driver knows of a network that is being solved: weights, biases, grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ir.build import register
from fxquant.ir.device import CPU, device_of
from fxquant.ir.headroom import finest_scale, with_headroom
from fxquant.numerics.types import QParams, QTensor
from fxquant.ops import Operand
from fxquant.solvers.base import Layer
from fxquant.solvers.fake_quantize import fake_quantize
from fxquant.solvers.scale_search import floor_scale, raise_scales, round_to_grid, start_scale


@dataclass(slots=True)
class Record:
    """The solution of one unit, as it is kept to resume.

    Attributes:
        weights: By weight name.
        biases: By layer name.
        grids: Changed grids by value name.
        losses: Objectives over the iterations, by layer or unit name.
        notes: By node name.
    """

    weights: dict[str, QTensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    grids: dict[str, QParams] = field(default_factory=dict)
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> Record:
        """The same on a device."""
        return replace(
            self,
            weights={name: weight.to(device) for name, weight in self.weights.items()},
            biases={name: bias.to(device) for name, bias in self.biases.items()},
            grids={name: grid.to(device) for name, grid in self.grids.items()},
        )


class NetworkState:
    """Solved and starting values of every layer; grids live in the graph's metadata.

    Grids of values stay on the CPU wherever the graph is: they are read as numbers.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.gm, self.device = gm, device_of(gm)
        self.nodes: dict[str, Node] = {n.name: n for n in gm.graph.nodes}
        self.weights: dict[str, QTensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.notes: dict[str, str] = {}
        self.losses: dict[str, tuple[float, ...]] = {}
        self._real: dict[str, tuple[QTensor, Tensor]] = {}  # dequantized weights

    def layer(self, node: Node, solved: frozenset[str] = frozenset()) -> Layer:
        """The record of a layer as it stands.

        Args:
            node: A weighted integer operator.
            solved: Names of weights that must not change any more.
        """
        definition = meta.opdef(node)
        assert definition is not None
        bound = definition.bind(node)
        weight_node, bias_node = bound["weight"], bound.get("bias")
        weight = meta.tensor_of(self.gm, weight_node).detach()
        bias = torch.zeros(len(weight), device=weight.device)
        if bias_node is not None:
            bias = meta.tensor_of(self.gm, bias_node).detach()
        value, output = meta.quant(weight_node), meta.quant(node)
        assert value is not None
        grids = meta.qparams(bound["x"]), None if output is None else meta.qparams(node)
        start, solved_bias = self.weights.get(weight_node.name), self.biases.get(node.name, bias)
        largest = torch.maximum(bias.abs(), solved_bias.abs())
        if start is None:
            scale, raised = floor_scale(start_scale(weight, value.spec), largest, *grids)
            start = round_to_grid(weight, scale, value.spec)
        else:  # the grids or the bias may have changed
            start, raised = raise_scales(start, weight, largest, *grids)
        self.weights[weight_node.name] = start
        if raised:
            self.notes[node.name] = (
                f"weight scale of {raised} channel(s) raised to keep the bias in int32"
            )
        return Layer(
            node, definition, weight_node.name, weight, bias, value.spec, *grids,
            start, solved_bias, weight_node.name in solved,
        )  # fmt: skip

    def parameters(self, node: Node) -> tuple[Tensor, Tensor]:
        """Real weight and bias of a layer as the device will have them."""
        layer = self.layer(node)
        weight = self._dequantized(layer)
        scale = layer.start.qparams.scale.double() * float(layer.input.scale)
        bias = torch.round(layer.start_bias.double() / scale) * scale
        return weight, bias.float()

    def _dequantized(self, layer: Layer) -> Tensor:
        known = self._real.get(layer.weight_name)
        if known is None or known[0] is not layer.start:
            known = self._real[layer.weight_name] = layer.start, layer.start.dequantize()
        return known[1]

    def on_grid(self, name: str, value: Tensor) -> Tensor:
        """A value rounded to the grid of the node that owns it."""
        grid = Operand.of(meta.qparams(self.nodes[name]))
        scale = torch.tensor(grid.scale, dtype=value.dtype, device=value.device)
        low, high = grid.qmin - grid.zero_point, grid.qmax - grid.zero_point
        return fake_quantize(value, scale, low, high)

    def set_grids(self, grids: Mapping[str, QParams]) -> dict[str, QParams]:
        """Change grids, in execution order, keeping the headroom of all sums; those really set."""
        actual: dict[str, QParams] = {}
        for name, node in self.nodes.items():
            value = meta.quant(node)
            if value is None or value.qparams is None or meta.grid_owner(node) is not node:
                continue
            present = value.qparams
            wanted = with_headroom(node, grids.get(name, present)).to(CPU)
            if wanted is not present:
                actual[name] = wanted
                self._set_grid(node, wanted)
        return actual

    def _set_grid(self, node: Node, qparams: QParams) -> None:
        """Also of the values that share the grid."""
        value = meta.quant(node)
        assert value is not None
        meta.set_quant(node, replace(value, qparams=qparams))
        for user in node.users:
            first = bool(user.all_input_nodes) and user.all_input_nodes[0] is node
            if first and meta.shares_grid(user) and meta.quant(user) is not None:
                self._set_grid(user, qparams)

    def apply(self, record: Record) -> None:
        """Take over a solution."""
        self.set_grids(record.grids)
        self.weights.update(record.weights)
        self.biases.update(record.biases)
        self.notes.update(record.notes)
        self.losses.update(record.losses)

    def finest(self, name: str) -> float:
        """Smallest legal scale of a value."""
        return finest_scale(self.nodes[name])

    def store(self) -> None:
        """Weights become integer codes, layers get their biases: the graph is CALIBRATED."""
        weights: dict[str, QTensor] = {}
        for node in [n for n in self.gm.graph.nodes if meta.is_layer(n)]:
            layer = self.layer(node)
            weights[layer.weight_name] = layer.start
            self._store_bias(node, self.parameters(node)[1])
        for name, quantized in weights.items():
            node = self.nodes[name]
            value = meta.quant(node)
            assert value is not None
            meta.set_quant(node, replace(value, qparams=quantized.qparams))
            attribute = str(node.target)
            delattr(self.gm, attribute)
            self.gm.register_buffer(attribute, quantized.codes)
            meta.set_value(node, tuple(quantized.codes.shape), torch.int8)
        self.gm.graph.eliminate_dead_code()
        self.gm.recompile()

    def _store_bias(self, node: Node, bias: Tensor) -> None:
        attribute = register(self.gm, f"{node.name}_bias", bias)
        weight_node = node.args[1]
        assert isinstance(weight_node, Node)
        with self.gm.graph.inserting_after(weight_node):
            bias_node = self.gm.graph.get_attr(attribute)
        meta.set_value(bias_node, tuple(bias.shape), bias.dtype)
        args = list(node.args) + [None] * (3 - len(node.args))
        args[2] = bias_node
        node.args = tuple(args)
