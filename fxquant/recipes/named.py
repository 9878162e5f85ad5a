"""Recipes by name: `RECIPES`, one row a recipe. The command line and the accuracy tables use it.

Values are called to make the steps; None is the default recipe of the precision.
"""

from __future__ import annotations

from collections.abc import Callable

from fxquant.errors import ConfigError
from fxquant.solvers import (
    BRECQ,
    GPTQ,
    UWC,
    ActivationEqualization,
    ActivationSteps,
    AdaRound,
    AttentionRound,
    BiasCorrection,
    BitSplit,
    CrossLayerEqualization,
    EasyQuant,
    QDrop,
    RoundToNearest,
    Scope,
    Solver,
)
from fxquant.solvers.equalization import Step

Steps = tuple[Step, ...]
_NEAREST: tuple[Solver, ...] = (RoundToNearest(), BiasCorrection())

RECIPES: dict[str, Callable[[], Steps | None]] = {
    "default": lambda: None,
    "rtn-max": lambda: (RoundToNearest("max"),),
    "rtn-mse": lambda: (RoundToNearest("mse"),),
    "rtn-mse+bias": lambda: (RoundToNearest("mse"), BiasCorrection()),
    "cle": lambda: (CrossLayerEqualization(), *_NEAREST),
    "easyquant": lambda: (EasyQuant(), BiasCorrection()),
    "bit-split": lambda: (BitSplit(),),
    "ecaq+bit-split": lambda: (ActivationEqualization(), BitSplit()),
    "gptq": lambda: (GPTQ(),),
    "adaround": lambda: (*_NEAREST, AdaRound()),
    "brecq": lambda: (*_NEAREST, BRECQ(), ActivationSteps()),
    "qdrop": lambda: (*_NEAREST, QDrop()),
    "attention-round": lambda: (GPTQ(), AttentionRound()),
    "uwc-layer": lambda: (GPTQ(), UWC(region=Scope.LAYER)),
    "uwc": lambda: (GPTQ(), UWC()),
}


def recipe(name: str) -> Steps | None:
    """The solvers of a recipe, in order; None lets the precision choose.

    Raises:
        ConfigError: There is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown", remedy=f"choose of {', '.join(RECIPES)}")
    return RECIPES[name]()
