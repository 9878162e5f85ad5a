"""Runs the float network with one layer quantized, and only what comes after that layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from fxquant.ir import meta
from fxquant.ir.batch import fixed_batch, samples_at_once
from fxquant.ir.units import units
from fxquant.numerics.types import activation_spec, qparams_from_range, weight_spec
from fxquant.recipes.network import Network, WeightInfo
from fxquant.solvers.base import Layer, LayerProblem, LayerSolver
from fxquant.solvers.program import Program
from fxquant.solvers.scale_search import floor_scale, round_to_grid, start_scale

_TINY = float(np.finfo(np.float64).tiny)


class Probe:
    """See the module docstring.

    Args:
        network: The network.
        inputs: One `[S, ...]` tensor a network input.
        at: See `sensitivity.py`.
        solver: Quantizes the layer.
    """

    def __init__(
        self, network: Network, inputs: Sequence[Tensor], at: str, solver: Sequence[LayerSolver]
    ) -> None:
        gm = network.graph
        self.network, self.solver = network, tuple(solver)
        operators = [n for n in gm.graph.nodes if n.op.startswith("call_")]
        ends = {n.name: operators[-1].name for n in operators}
        if at == "unit":
            ends = {name: unit.nodes[-1] for unit in units(gm) for name in unit.nodes}
        place = {n.name: i for i, n in enumerate(operators)}
        starts = {w.layers[0]: w for w in network.free}
        self.suffixes = {
            w.name: Program(gm, operators[place[name] : place[ends[name]] + 1])
            for name, w in starts.items()
        }
        cuts = [place[name] for name in starts]
        self.segments = [
            (None if a is None else starts[operators[a].name], Program(gm, operators[a or 0 : b]))
            for a, b in zip([None, *cuts], [*cuts, len(operators)], strict=True)
        ]
        batch = fixed_batch(gm)
        size = batch or samples_at_once(operators)
        whole = len(inputs[0]) // size * size if batch else len(inputs[0])
        placeholders = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
        self.chunks = [
            {n: x[i : i + size] for n, x in zip(placeholders, inputs, strict=True)}
            for i in range(0, whole or size, size)
        ]
        self.expected: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    @torch.no_grad()
    def measure(
        self, wanted: Sequence[tuple[WeightInfo, int]]
    ) -> Iterator[tuple[WeightInfo, int, float]]:
        """The losses of weights at widths, in the order of the widths."""
        for bits in dict.fromkeys(b for _, b in wanted):
            names = {w.name for w, b in wanted if b == bits}
            live = [dict(chunk) for chunk in self.chunks]
            for index, (weight, segment) in enumerate(self.segments):
                if weight is not None and weight.name in names:
                    yield weight, bits, self._loss(weight, bits, live)
                rest = [p for _, p in self.segments[index + 1 :]]
                needed = {n.name for p in rest for n in p.inputs}
                for values in live:
                    values.update(segment.run({n.name: values[n.name] for n in segment.inputs}))
                    for name in values.keys() - needed:
                        del values[name]

    def _loss(self, weight: WeightInfo, bits: int, live: Sequence[Mapping[str, Any]]) -> float:
        suffix = self.suffixes[weight.name]
        inputs = [{n.name: values[n.name] for n in suffix.inputs} for values in live]
        names = tuple(n.name for n in suffix.outputs)
        if names not in self.expected:
            self.expected[names] = [suffix.run(chunk) for chunk in inputs]
        solved = self._solve(weight, bits, live)
        noise, signal = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for chunk, expected in zip(inputs, self.expected[names], strict=True):
            actual = suffix.run(chunk, lambda n: self._parameters(n, weight, solved))
            for name, value in expected.items():
                noise[name] += float((actual[name] - value).double().square().sum())
                signal[name] += float(value.double().square().sum())
        return float(np.mean([noise[n] / max(signal[n], _TINY) for n in names]))

    def _solve(
        self, info: WeightInfo, bits: int, live: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        """Weight and bias the solver finds for the first layer of a weight on its float inputs."""
        node = self.network.node(info.layers[0])
        definition = meta.opdef(node)
        assert definition is not None
        bound = definition.bind(node)
        chunks = [tuple(v[bound[k].name] for k in definition.operands if k in bound) for v in live]
        low, high = (torch.stack([f(c[0]) for c in chunks]) for f in (torch.amin, torch.amax))
        grid = qparams_from_range(low.amin(), high.amax(), activation_spec(info.activation_bits))
        weight, bias = self._float(node)
        spec = weight_spec(bits)
        scale, _ = floor_scale(start_scale(weight, spec), bias, grid, None)
        layer = Layer(
            node, definition, info.node, weight, bias, spec, grid, None,
            round_to_grid(weight, scale, spec), bias,
        )  # fmt: skip
        rng = torch.Generator().manual_seed(0)
        for step in self.solver:
            solution = step.solve_layer(LayerProblem(layer, chunks, chunks), rng)
            layer = replace(layer, start=solution.weight, start_bias=solution.bias)
        return layer.start.dequantize(), layer.start_bias

    def _parameters(
        self, node: Node, changed: WeightInfo, solved: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer of the changed network."""
        weight, bias = self._float(node)
        if node.name not in changed.layers:
            return weight, bias
        return solved[0], solved[1] if node.name == changed.layers[0] else bias

    def _float(self, node: Node) -> tuple[Tensor, Tensor]:
        """Float weight and bias of a layer."""
        definition = meta.opdef(node)
        assert definition is not None
        bound = definition.bind(node)
        weight = meta.tensor_of(self.network.graph, bound["weight"]).detach()
        if "bias" not in bound:
            return weight, torch.zeros(len(weight))
        return weight, meta.tensor_of(self.network.graph, bound["bias"]).detach()
