"""Solvers: pure functions from a UnitProblem to a UnitSolution."""

from fxquant.solvers.base import Scope, Solver, UnitProblem, UnitSolution
from fxquant.solvers.round_to_nearest import RoundToNearest

__all__ = ["RoundToNearest", "Scope", "Solver", "UnitProblem", "UnitSolution"]
