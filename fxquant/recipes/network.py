"""The weights of a network whose widths can be chosen, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.config import Config, OpConfig, check_config
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.device import model_device, move
from fxquant.ir.frontend import capture, normalize
from fxquant.ir.frontend.capture import as_inputs
from fxquant.ops.conv import conv_transpose2d, linear
from fxquant.passes.annotate import annotate
from fxquant.passes.fuse import fuse
from fxquant.passes.residuals import copies

DEPTHWISE = 4  # bits: fewer are hopeless with so few weights a channel
FIRST_LAST = 8
_CHOSEN_BY_DEFAULT = ("default", "first_last")  # rules that do not name a layer


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """One weight and the layers that use it.

    Attributes:
        name: Module path of its first layer, or the node name.
        node: Name of the weight's node.
        layers: Node names of its layers, in execution order.
        rules: For `Config.names`: names that match these layers and nothing else, with the bits
            their results have.
        size: Number of weights.
        macs: Multiply-accumulates of all its layers for one sample.
        activation_bits: Bits of its layers' input, the largest.
        smallest: Smallest sensible width.
        fixed: The width the configuration prescribes; None if it is to be chosen.
    """

    name: str
    node: str
    layers: tuple[str, ...]
    rules: tuple[tuple[str, int], ...]
    size: int
    macs: int
    activation_bits: int
    smallest: int
    fixed: int | None

    @property
    def bit_operations(self) -> int:
        """Bit-operations a bit of the weight: multiply-accumulates times activation bits."""
        return self.macs * self.activation_bits


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network and its weights.

    Attributes:
        graph: ANNOTATED graph, on the device of the model.
        config: Its configuration.
        weights: All integer weights, in execution order.
    """

    graph: GraphModule
    config: Config
    weights: tuple[WeightInfo, ...]

    @property
    def free(self) -> tuple[WeightInfo, ...]:
        """Those whose width is to be chosen."""
        return tuple(w for w in self.weights if w.fixed is None)

    def tensor(self, weight: WeightInfo) -> Tensor:
        """Its float values, `[O, ...]`."""
        return meta.tensor_of(self.graph, self.node(weight.node)).detach()

    def node(self, name: str) -> Node:
        """A node by name."""
        return next(n for n in self.graph.graph.nodes if n.name == name)


def describe(model: Any, example_inputs: Any, config: Config) -> Network:
    """Capture a model and list its weights. The caller's model is not changed.

    Widths are chosen for the layers that no rule of the configuration names, but for the first and
    the last one: these have `config.first_last`, by default 8 bits.

    Raises:
        CaptureError: The model cannot be captured, or is spread over several devices.
        ConfigError: There is no layer to choose a width for.
    """
    check_config(config)
    if config.first_last is None and config.default is not None:
        wide = OpConfig(FIRST_LAST, max(FIRST_LAST, config.default.activation_bits))
        config = replace(config, first_last=wide)
    device = model_device(model)
    inputs = as_inputs(example_inputs)
    gm = annotate(fuse(normalize(capture(model, inputs), inputs)), config)
    operators = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    weighted = [n for n in operators if meta.is_weighted(n)]
    by_weight: dict[Node, list[Node]] = {}
    for node in filter(meta.is_layer, weighted):
        by_weight.setdefault(_weight_node(node), []).append(node)
    ends = {weighted[0], weighted[-1]} if weighted else set()
    weights = tuple(
        _info(gm, weight, layers, operators, not ends.isdisjoint(layers))
        for weight, layers in by_weight.items()
    )
    network = Network(move(gm, device), config, weights)
    if not network.free:
        raise ConfigError(
            "there is no layer whose width could be chosen",
            why="the first and the last layer are fixed, and so are layers that rules name",
            remedy="use uniform widths, or remove rules from the configuration",
        )
    return network


def _weight_node(layer: Node) -> Node:
    weight = layer.args[1]
    assert isinstance(weight, Node)
    return weight


def _info(
    gm: GraphModule, weight: Node, layers: Sequence[Node], operators: Sequence[Node], end: bool
) -> WeightInfo:
    tensor, quant = meta.tensor_of(gm, weight), meta.quant(weight)
    assert quant is not None
    named = quant.origin not in _CHOSEN_BY_DEFAULT
    depthwise = any(n.kwargs.get("groups", 1) != 1 for n in layers) and tensor.shape[1] == 1
    return WeightInfo(
        name=meta.provenance(layers[0]).name or layers[0].name,
        node=weight.name,
        layers=tuple(n.name for n in layers),
        rules=_rules(layers, operators),
        size=tensor.numel(),
        macs=sum(tensor.numel() * _positions(n) for n in layers),
        activation_bits=max(_bits(n.args[0]) for n in layers),
        smallest=DEPTHWISE if depthwise else 2,
        fixed=quant.spec.dtype.bits if named or end else None,
    )


def _rules(layers: Sequence[Node], operators: Sequence[Node]) -> tuple[tuple[str, int], ...]:
    """A module path if it means these layers only, else node names."""
    path, bits = meta.provenance(layers[0]).name, {_bits(_as_layers_read(n)) for n in layers}
    meant = [n for n in operators if path in (n.name, *meta.provenance(n).modules)]
    if path and set(meant) == set(layers) and len(bits) == 1:
        return ((path, bits.pop()),)
    return tuple((n.name, _bits(_as_layers_read(n))) for n in layers)


def _as_layers_read(value: Node) -> Node:
    """The value itself, or its copy with the bits of its rule (passes/residuals.py)."""
    return next(copies(value), value)


def _bits(value: Any) -> int:
    """Bits of a value's codes; 8 if it stays in float."""
    quant = meta.quant(value)
    return 8 if quant is None else quant.spec.dtype.bits


def _positions(layer: Node) -> int:
    """How often a sample multiplies each weight."""
    if layer.target is linear:
        return prod(meta.shape_of(layer)[1:-1])
    x = layer.args[0]
    assert isinstance(x, Node)
    return prod(meta.shape_of(x if layer.target is conv_transpose2d else layer)[2:])
