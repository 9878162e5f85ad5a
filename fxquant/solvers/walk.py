"""Steps that work layer by layer, through the inside of one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.ir import meta
from fxquant.solvers.activations import span_of
from fxquant.solvers.base import LayerProblem, LayerSolver, Reader, ValueProblem
from fxquant.solvers.program import Program
from fxquant.solvers.state import NetworkState, Record


class Walk:
    """Runs a unit operator by operator under both prefixes and solves its layers on the way.

    Args:
        state: The network so far; solved layers are written to it.
        program: The unit.
        solved: Names of weights that must not change any more.
        chunk: Samples run at once.
        samples: Samples to use, the first ones.
        total: Samples that the values before the unit hold.
    """

    def __init__(
        self,
        state: NetworkState,
        program: Program,
        solved: frozenset[str],
        chunk: int,
        samples: int,
        total: int,
    ) -> None:
        self.state, self.program, self.solved = state, program, set(solved)
        self.chunk, self.samples, self.total = chunk, samples, total
        self.float_values: list[dict[str, Tensor]] = []  # one a chunk
        self.values: list[dict[str, Tensor]] = []

    def run(
        self,
        steps: Sequence[LayerSolver],
        floats: Mapping[str, Tensor],
        quantized: Mapping[str, Tensor],
        rng: torch.Generator,
        record: Record,
    ) -> None:
        """Solve every layer of the unit; solutions go to the state and to `record`."""
        self.float_values, self.values = self._chunks(floats), self._chunks(quantized)
        for node in self.program.nodes:
            for values in self.float_values:
                values[node.name] = self.program.evaluate(node, values)
            if meta.is_layer(node):
                self._solve_layer(node, steps, rng, record)
            plain = [
                self.program.evaluate(node, v, self.state.parameters, self.state.on_grid)
                for v in self.values
            ]
            if node in self.program.gridded:
                self._choose_grid(node, plain, steps, record)
            for values, value in zip(self.values, plain, strict=True):
                values[node.name] = self.program.settle(node, value, self.state.on_grid)

    def _chunks(self, values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        names = [n.name for n in self.program.inputs]
        ends = [*range(0, self.samples, self.chunk), self.samples]
        return [
            {n: span_of(values[n], *span, self.total).to(self.state.device) for n in names}
            for span in pairwise(ends)
        ]

    def _solve_layer(
        self, node: Node, steps: Sequence[LayerSolver], rng: torch.Generator, record: Record
    ) -> None:
        definition = meta.opdef(node)
        assert definition is not None
        bound = definition.bind(node)
        operands = [bound[name] for name in definition.operands if name in bound]
        floats = [tuple(v[o.name] for o in operands) for v in self.float_values]
        on_grid = [
            tuple(self.program.read(o, v[o.name], self.state.on_grid) for o in operands)
            for v in self.values
        ]
        for step in steps:
            layer = self.state.layer(node, frozenset(self.solved))
            solution = step.solve_layer(LayerProblem(layer, floats, on_grid), rng)
            if not layer.frozen:
                self.state.weights[layer.weight_name] = solution.weight
            self.state.biases[node.name] = record.biases[node.name] = solution.bias
            if solution.losses:
                record.losses[node.name] = solution.losses
            if solution.note:
                record.notes[node.name] = solution.note
        name = self.state.layer(node).weight_name
        record.weights[name] = self.state.weights[name]
        self.solved.add(name)

    def _choose_grid(
        self, node: Node, plain: Sequence[Tensor], steps: Sequence[LayerSolver], record: Record
    ) -> None:
        """Offer the value's grid to every step, together with the layers that read it."""
        float_value = [values[node.name] for values in self.float_values]
        readers = self._readers(node, float_value, plain)
        for step in steps:
            grid = meta.qparams(node)
            problem = ValueProblem(
                node.name, grid, self.state.finest(node.name), float_value, plain, readers
            )
            chosen = step.choose_grid(problem)
            if chosen is not grid:
                record.grids.update(self.state.set_grids({node.name: chosen}))

    def _readers(
        self, node: Node, float_value: Sequence[Tensor], value: Sequence[Tensor]
    ) -> list[Reader]:
        """The layers that read a value, also through poolings and the like, with what they see."""
        found = []
        for user in node.users:
            if meta.is_layer(user) and user.args[0] is node:
                layer = self.state.layer(user, frozenset(self.solved))
                found.append(Reader(layer, float_value, value))
            elif meta.shares_grid(user):
                both = (
                    [self.program.evaluate(user, {node.name: x}) for x in chunks]
                    for chunks in (float_value, value)
                )
                found += self._readers(user, *both)
        return found
