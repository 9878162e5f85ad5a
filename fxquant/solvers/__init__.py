"""Solvers: pure functions from a UnitProblem to a UnitSolution."""

from fxquant.solvers.base import Solver, UnitProblem, UnitSolution
from fxquant.solvers.round_to_nearest import RoundToNearest

__all__ = ["RoundToNearest", "Solver", "UnitProblem", "UnitSolution"]
