"""How far every value of the quantized network is from its float original.

Two errors a value, because they answer two questions:

* cumulative: the simulator against the float network, everything before the value quantized too.
  It says where the network has drifted to.
* isolated: float inputs, only this operator quantized (its operands, weight and result). It says
  which operator is to blame.

A `Quantized` holds integer weight codes, not the float weights. Without the float model the
reference therefore runs the dequantized weights, and only the rounding of activations shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from fxquant.calibration import batches_of
from fxquant.errors import CalibrationError, ConfigError
from fxquant.ir import meta
from fxquant.ir.frontend import capture, normalize
from fxquant.model import Quantized
from fxquant.ops.qdq import dequantize, dequantize_weight, quantize
from fxquant.passes.fuse import fuse

SAMPLES = 32
BATCH = 4  # all values of the float network are held for one such batch


@dataclass(frozen=True, slots=True)
class Similarity:
    """Of a quantized value to its original.

    Attributes:
        sqnr: Signal-to-quantization-noise ratio in dB; infinite if equal.
        cosine: Cosine of the angle between both, as vectors.
    """

    sqnr: float
    cosine: float


@dataclass(frozen=True, slots=True)
class LayerError:
    """Errors of one value of the network."""

    node: str
    cumulative: Similarity
    isolated: Similarity


@dataclass(slots=True)
class _Sums:
    """Running sums over batches: of squares, of the squared difference, of the product."""

    signal: float = 0.0
    quantized: float = 0.0
    noise: float = 0.0
    product: float = 0.0

    def add(self, reference: Tensor, value: Tensor) -> None:
        a, b = reference.double().flatten(), value.double().flatten()
        self.signal += float(a @ a)
        self.quantized += float(b @ b)
        self.noise += float((a - b) @ (a - b))
        self.product += float(a @ b)

    def similarity(self) -> Similarity:
        norm = math.sqrt(self.signal * self.quantized)
        cosine = self.product / norm if norm > 0 else float(self.noise == 0)
        if self.noise == 0:
            return Similarity(math.inf, cosine)
        sqnr = 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        return Similarity(sqnr, cosine)


@dataclass(slots=True)
class _Pair:
    cumulative: _Sums = field(default_factory=_Sums)
    isolated: _Sums = field(default_factory=_Sums)


@torch.no_grad()
def layer_errors(
    quantized: Quantized, data: Any, model: Any = None, samples: int = SAMPLES
) -> tuple[LayerError, ...]:
    """Errors of every operator's result and of the quantized inputs, in execution order.

    Args:
        quantized: From `fxquant.convert`.
        data: As in `fxquant.calibrate`: a tensor or an iterable of batches.
        model: The float model; without it the error of the weights does not show.
        samples: How many inputs to use at most.

    Raises:
        CalibrationError: There is no data.
        ConfigError: `model` is not the one that was quantized.
    """
    probe = _Probe(quantized.graph_module)
    original: GraphModule | None = None
    seen = 0
    for batch in batches_of(data, len(probe.inputs)):
        chunks = zip(*(x[: samples - seen].split(BATCH) for x in batch), strict=True)
        for inputs in chunks:
            if model is not None and original is None:
                original = _original(model, inputs, probe)
            probe.add(inputs, original)
            seen += len(inputs[0])
        if seen >= samples:
            break
    if seen == 0:
        raise CalibrationError("no data to measure the errors on", remedy="pass a non-empty loader")
    return tuple(
        LayerError(name, pair.cumulative.similarity(), pair.isolated.similarity())
        for name, pair in probe.pairs.items()
    )


def _original(model: Any, inputs: tuple[Tensor, ...], probe: _Probe) -> GraphModule:
    """The float model as the graph that was quantized, with the same node names."""
    example = tuple(x[:1] for x in inputs)
    gm = fuse(normalize(capture(model, example), example))
    names = {n.name for n in gm.graph.nodes}
    missing = [name for name in probe.results if name not in names]
    if missing:
        raise ConfigError(
            f"the model has no value {missing[0]}",
            why="it is not the model that was quantized",
            remedy="pass the float model that was given to fxquant.prepare",
        )
    return gm


class _Values(Interpreter):
    """Runs a graph and keeps every value; QDQ nodes are passed through if `bypass`."""

    def __init__(self, gm: GraphModule, bypass: bool) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.bypass = bypass
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        if self.bypass and n.target in (quantize, dequantize):
            value = self.env[n.all_input_nodes[0]]
        else:
            value = super().run_node(n)
        if n.op != "output":
            self.values[n.name] = value
        return value


class _Probe:
    """The QDQ graph with, for each value of the network, the node that holds it on its grid."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        nodes = [n for n in gm.graph.nodes if n.op not in ("get_attr", "output")]
        rendering = (quantize, dequantize, dequantize_weight)
        self.inputs = [n for n in nodes if n.op == "placeholder"]
        self.results = {n.name: _on_grid(n) for n in nodes if n.target not in rendering}
        self.pairs: dict[str, _Pair] = {}

    def add(self, inputs: tuple[Tensor, ...], original: GraphModule | None) -> None:
        """Take in a batch."""
        reference = _Values(original or self.gm, bypass=original is None)
        simulator = _Values(self.gm, bypass=False)
        reference.run(*inputs)
        simulator.run(*inputs)
        floats = {name: reference.values[name] for name in self.results}
        if original is not None:
            floats |= self._equalized(floats)
        for name, result in self.results.items():
            if not isinstance(floats[name], Tensor):
                continue
            pair = self.pairs.setdefault(name, _Pair())
            pair.cumulative.add(floats[name], simulator.values[result.name])
            pair.isolated.add(floats[name], self._isolated(name, result, floats))

    def _equalized(self, floats: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values of the original model in the units of the network, where it was equalized."""
        factors = {n.name: meta.channel_factors(n) for n in self.gm.graph.nodes}
        return {n: floats[n] / f for n, f in factors.items() if f is not None and n in floats}

    def _isolated(self, name: str, result: Node, floats: Mapping[str, Any]) -> Tensor:
        """The value computed by the quantized operator from the float network's values."""

        def evaluate(node: Node) -> Any:
            if node.op == "get_attr":
                return meta.tensor_of(self.gm, node)
            if node.name in floats and (node.name != name or node.op == "placeholder"):
                return floats[node.name]
            assert callable(node.target)
            return node.target(*map_arg(node.args, evaluate), **map_arg(node.kwargs, evaluate))

        return evaluate(result)


def _on_grid(node: Node) -> Node:
    """The value after its quantize/dequantize pair, or the value itself."""
    for codes in node.users:
        if codes.target is quantize:
            return next(iter(codes.users), node)
    return node
