"""Solvers: pure functions from a problem to codes, scales, biases and grids."""

from fxquant.solvers.base import (
    Layer,
    LayerProblem,
    LayerSolution,
    LayerSolver,
    Scope,
    Solver,
    UnitProblem,
    UnitSolution,
    UnitSolver,
    ValueProblem,
)
from fxquant.solvers.round_to_nearest import BiasCorrection, RoundToNearest

__all__ = [
    "BiasCorrection",
    "Layer",
    "LayerProblem",
    "LayerSolution",
    "LayerSolver",
    "RoundToNearest",
    "Scope",
    "Solver",
    "UnitProblem",
    "UnitSolution",
    "UnitSolver",
    "ValueProblem",
]
