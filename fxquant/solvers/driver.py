"""The driver: capture -> solve -> apply, layer by layer. The only place that runs the model.

Every value is held twice for a bounded set of samples, under the float prefix and under the
quantized prefix, and dropped after its last use. Solved layers become part of the quantized
prefix of the layers behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from tqdm.auto import tqdm

from fxquant.ir import meta
from fxquant.ir.build import register
from fxquant.ir.units import Unit
from fxquant.numerics.types import QParams, QTensor
from fxquant.ops import Operand
from fxquant.ops.qdq import dequantize, quantize
from fxquant.solvers.base import Layer, Solver, UnitProblem, UnitSolution

CHUNK = 16  # samples run at once


@dataclass(slots=True)
class Solved:
    """What the driver leaves besides the graph: messages and losses by node name."""

    notes: dict[str, str] = field(default_factory=dict)
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)


def samples_within(gm: GraphModule, budget_bytes: int) -> int:
    """How many samples the driver can hold, from the peak of live values in the traced shapes."""
    last_use = _last_uses(gm)
    live, peak = 0, 1
    for index, node in enumerate(gm.graph.nodes):
        if "shape" not in node.meta or node.op in ("get_attr", "output"):
            continue
        live += _bytes_per_sample(node)
        peak = max(peak, live)
        live -= sum(_bytes_per_sample(n) for n, use in last_use.items() if use == index)
    return max(1, budget_bytes // (2 * peak))


def _bytes_per_sample(node: Node) -> int:
    shape = node.meta.get("shape", ())
    return 4 * int(torch.Size(shape).numel()) // max(shape[0] if shape else 1, 1)


def _last_uses(gm: GraphModule) -> dict[Node, int]:
    uses: dict[Node, int] = {}
    for index, node in enumerate(gm.graph.nodes):
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                uses[source] = index
    return uses


@torch.no_grad()
def solve(
    gm: GraphModule,
    samples: Sequence[Tensor],
    solver: Solver,
    batch: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Solved:
    """Solve every layer of a graph whose values have grids; `gm` becomes CALIBRATED.

    Args:
        gm: ANNOTATED graph with activation qparams.
        samples: One `[S, ...]` tensor a network input.
        solver: The solver.
        batch: Samples to run at once, if the graph can run no other number.
        seed: Seed of the solver's randomness.
        progress: Show a progress bar.
    """
    if batch is not None:  # an incomplete batch cannot be run
        samples = [s[: len(s) // batch * batch or len(s)] for s in samples]
    return _Driver(gm, samples, solver, batch or CHUNK, seed).run(progress)


class _Driver:
    """Runs both prefixes through the graph."""

    def __init__(
        self, gm: GraphModule, samples: Sequence[Tensor], solver: Solver, chunk: int, seed: int
    ) -> None:
        self.gm, self.solver = gm, solver
        self.rng = torch.Generator().manual_seed(seed)
        self.chunks = [s.split(chunk) for s in samples]
        self.float_values: dict[Node, list[Tensor]] = {}
        self.quantized_values: dict[Node, list[Tensor]] = {}
        self.codes: dict[Node, QTensor] = {}
        self.weights: dict[Node, Tensor] = {}  # dequantized codes
        self.solved = Solved()

    def run(self, progress: bool) -> Solved:
        last_use = _last_uses(self.gm)
        nodes = list(self.gm.graph.nodes)
        layers = sum(self._is_layer(n) for n in nodes)
        inputs = iter(self.chunks)
        with tqdm(total=layers, desc="solve", unit="layer", disable=not progress) as bar:
            for index, node in enumerate(nodes):
                if node.op == "placeholder":
                    chunks = list(next(inputs))
                    self.float_values[node] = chunks
                    self.quantized_values[node] = [self._on_grid(node, c) for c in chunks]
                elif node.op.startswith("call_"):
                    self.float_values[node] = self._run(node, self.float_values, False)
                    if self._is_layer(node):
                        self._solve_layer(node)
                        bar.update()
                    self.quantized_values[node] = self._run(node, self.quantized_values, True)
                for dead in [n for n, use in last_use.items() if use == index]:
                    self.float_values.pop(dead, None)
                    self.quantized_values.pop(dead, None)
        self._store_codes()
        return self.solved

    def _is_layer(self, node: Node) -> bool:
        definition = meta.opdef(node)
        return definition is not None and definition.weighted and meta.runs_on_integers(node)

    def _solve_layer(self, node: Node) -> None:
        definition = meta.opdef(node)
        assert definition is not None
        bound = definition.bind(node)
        weight = meta.tensor_of(self.gm, bound["weight"]).detach()
        bias = bound.get("bias")
        quant, spec = meta.quant(node), meta.quant(bound["weight"])
        assert spec is not None
        layer = Layer(
            node,
            definition,
            weight,
            torch.zeros(len(weight)) if bias is None else meta.tensor_of(self.gm, bias).detach(),
            spec.spec,
            meta.qparams(bound["x"]),
            None if quant is None else quant.qparams,
        )
        operands = [bound[name] for name in definition.operands if name in bound]
        problem = UnitProblem(
            Unit(node.name, (node.name,), tuple(o.name for o in operands), node.name),
            {node.name: layer},
            {node.name: list(zip(*(self.float_values[o] for o in operands), strict=True))},
            {node.name: list(zip(*(self.quantized_values[o] for o in operands), strict=True))},
        )
        if spec.qparams is not None:  # a weight shared with a layer solved before
            codes = self.codes[bound["weight"]]
            solution = UnitSolution({node.name: codes}, {node.name: layer.bias})
        else:
            solution = self.solver.solve(problem, self.rng)
        self._apply(node, bound, solution)

    def _apply(self, node: Node, bound: dict, solution: UnitSolution) -> None:
        weight, name = bound["weight"], node.name
        quantized = solution.weights[name]
        known = meta.quant(weight)
        assert known is not None
        meta.set_quant(weight, replace(known, qparams=quantized.qparams))
        self.codes[weight] = quantized
        self.weights[weight] = quantized.dequantize()
        self._set_bias(node, weight, quantized, solution.biases[name], meta.qparams(bound["x"]))
        for changed, qparams in solution.activations.items():
            owner = next(n for n in self.gm.graph.nodes if n.name == changed)
            value = meta.quant(owner)
            assert value is not None
            meta.set_quant(owner, replace(value, qparams=qparams))
        self.solved.notes.update(solution.notes)
        if solution.losses:
            self.solved.losses[name] = solution.losses

    def _set_bias(
        self, node: Node, weight: Node, codes: QTensor, bias: Tensor, grid: QParams
    ) -> None:
        """Give the layer its own bias, rounded to the int32 grid it will have on the device."""
        scale = codes.qparams.scale.double() * float(grid.scale)
        rounded = (torch.round(bias.double() / scale) * scale).float()
        attribute = register(self.gm, f"{node.name}_bias", rounded)
        with self.gm.graph.inserting_after(weight):
            bias_node = self.gm.graph.get_attr(attribute)
        meta.set_value(bias_node, tuple(rounded.shape), rounded.dtype)
        args = list(node.args) + [None] * (3 - len(node.args))
        args[2] = bias_node
        node.args = tuple(args)

    def _run(self, node: Node, values: dict[Node, list[Tensor]], quantized: bool) -> list[Tensor]:
        """Run one operator on all samples of one prefix."""
        results = [self._call(node, values, i, quantized) for i in range(len(self.chunks[0]))]
        if quantized and meta.float_reason(node) is None:
            return [self._on_grid(node, r) for r in results]
        return results

    def _call(
        self, node: Node, values: dict[Node, list[Tensor]], i: int, quantized: bool
    ) -> Tensor:
        integer = meta.float_reason(node) is None

        def operand(n: Node) -> Tensor:
            if n.op == "get_attr":
                solved = self.weights.get(n) if quantized else None
                return meta.tensor_of(self.gm, n) if solved is None else solved
            value = values[n][i]
            produced_float = n.op != "placeholder" and meta.float_reason(n) is not None
            return self._on_grid(n, value) if quantized and integer and produced_float else value

        args, kwargs = map_arg(node.args, operand), map_arg(node.kwargs, operand)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)

    @staticmethod
    def _on_grid(node: Node, value: Tensor) -> Tensor:
        quant = meta.quant(node)
        if quant is None or quant.qparams is None:
            return value
        grid = Operand.of(quant.qparams)
        codes = quantize(value, scale=grid.scale, zero_point=grid.zero_point,
                         qmin=grid.qmin, qmax=grid.qmax)  # fmt: skip
        return dequantize(codes, scale=grid.scale, zero_point=grid.zero_point)

    def _store_codes(self) -> None:
        """Weights become their integer codes: the graph is CALIBRATED."""
        for node, quantized in self.codes.items():
            name = str(node.target)
            delattr(self.gm, name)
            self.gm.register_buffer(name, quantized.codes)
            meta.set_value(node, tuple(quantized.codes.shape), torch.int8)
        self.gm.graph.eliminate_dead_code()
        self.gm.recompile()
