"""Recipes of the accuracy tables: those by name, and baselines with as much time as the default.

The default recipe trains longer than the baselines do in 300 iterations. The `-long` ones have as
many iterations as make the calibration of cifar10_resnet20 at W4A4 last as long as the default's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fxquant.recipes import RECIPES as NAMED
from fxquant.recipes.named import Steps
from fxquant.solvers.reconstruct import Reconstruction

_LONG = {"adaround": 1200, "brecq": 800, "qdrop": 800}  # iterations of what trains codes


def _longer(name: str, iterations: int) -> Steps:
    """A recipe whose codes are trained for longer."""

    def step(solver: Any) -> Any:
        if not isinstance(solver, Reconstruction) or solver.training.code_rate == 0:
            return solver
        return replace(solver, training=replace(solver.training, iterations=iterations))

    return tuple(step(solver) for solver in NAMED[name]() or ())


RECIPES: dict[str, Callable[[], Steps | None]] = {
    **NAMED,
    **{f"{name}-long": (lambda n=name, i=i: _longer(n, i)) for name, i in _LONG.items()},
}
