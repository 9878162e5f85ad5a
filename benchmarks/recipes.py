"""The recipes whose accuracy is measured: the default, every solver, and the baselines.

Values are called to make the steps; None is the default recipe of the preset.
"""

from __future__ import annotations

from collections.abc import Callable

from fxquant.solvers import (
    BRECQ,
    GPTQ,
    UWC,
    ActivationSteps,
    AdaRound,
    AttentionRound,
    BiasCorrection,
    BitSplit,
    EasyQuant,
    QDrop,
    RoundToNearest,
    Scope,
    Solver,
)

Steps = tuple[Solver, ...]
NEAREST: Steps = (RoundToNearest(), BiasCorrection())

RECIPES: dict[str, Callable[[], Steps | None]] = {
    "default": lambda: None,
    "rtn-max": lambda: (RoundToNearest("max"),),
    "rtn-mse": lambda: (RoundToNearest("mse"),),
    "rtn-mse+bias": lambda: (RoundToNearest("mse"), BiasCorrection()),
    "easyquant": lambda: (EasyQuant(), BiasCorrection()),
    "bit-split": lambda: (BitSplit(),),
    "gptq": lambda: (GPTQ(),),
    "adaround": lambda: (*NEAREST, AdaRound()),
    "brecq": lambda: (*NEAREST, BRECQ(), ActivationSteps()),
    "qdrop": lambda: (*NEAREST, QDrop()),
    "attention-round": lambda: (GPTQ(), AttentionRound()),
    "uwc-layer": lambda: (GPTQ(), UWC(region=Scope.LAYER)),
    "uwc": lambda: (GPTQ(), UWC()),
}
