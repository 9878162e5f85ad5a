"""A value's grid is offered with every layer that reads it, and with what that layer sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.numerics.types import QParams
from fxquant.solvers import (
    EasyQuant,
    LayerProblem,
    LayerSolution,
    LayerSolver,
    RoundToNearest,
    ValueProblem,
)
from fxquant.solvers.easyquant import round_value
from tests.tolerance import assert_same

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Branches(nn.Module):
    """A value read by a layer and, behind two poolings, by another; a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)
        self.a = nn.Conv2d(3, 3, 1, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        pooled = F.max_pool2d(F.max_pool2d(x, 3, 2, 1), 3, 1, 1)
        both = torch.cat([self.a(x), self.b(pooled)], 1)
        return self.head(both.mean((2, 3), keepdim=True).flatten(1))


class Watching(LayerSolver):
    """A solver that keeps what it was asked: values by name, layers by name."""

    def __init__(self, solver: LayerSolver) -> None:
        self.solver = solver
        self.values: dict[str, ValueProblem] = {}
        self.chosen: dict[str, QParams] = {}
        self.layers: dict[str, LayerProblem] = {}

    def choose_grid(self, problem: ValueProblem) -> QParams:
        self.values[problem.name] = problem
        self.chosen[problem.name] = self.solver.choose_grid(problem)
        return self.chosen[problem.name]

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        self.layers[problem.layer.node.name] = problem
        return self.solver.solve_layer(problem, rng)


def watched(solver: LayerSolver) -> Watching:
    watching = Watching(solver)
    torch.manual_seed(0)
    fxquant.quantize(Branches().eval(), [X], solver=watching, progress=False)
    return watching


def test_a_grid_is_offered_with_all_layers_that_read_the_value() -> None:
    values = watched(RoundToNearest()).values
    readers = {name: {r.layer.node.name for r in v.readers} for name, v in values.items()}
    assert readers == {"stem": {"a", "b"}, "a": set(), "b": set(), "cat": set(), "mean": {"head"}}


def test_layers_see_what_they_were_offered_with_rounded_to_the_grid() -> None:
    """Pooling moves codes: rounding before it and after it are the same."""
    watching = watched(EasyQuant(candidates=9))
    checked = 0
    for name, value in watching.values.items():
        for reader in value.readers:
            problem = watching.layers[reader.layer.node.name]
            for seen, offered in (
                (problem.float_operands, reader.float_operand),
                (problem.quantized_operands,
                 [round_value(x, watching.chosen[name]) for x in reader.operand]),
            ):  # fmt: skip
                for (x, *_), expected in zip(seen, offered, strict=True):
                    assert_same(x, expected)
            checked += 1
    assert checked == 3
