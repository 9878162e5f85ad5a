"""Solvers: pure functions from a problem to codes, scales, biases and grids."""

from fxquant.solvers.activation_equalization import ActivationEqualization
from fxquant.solvers.adaround import BRECQ, ActivationSteps, AdaRound, QDrop
from fxquant.solvers.attention_round import AttentionRound
from fxquant.solvers.base import (
    Layer,
    LayerProblem,
    LayerSolution,
    LayerSolver,
    Reader,
    Scope,
    Solver,
    UnitProblem,
    UnitSolution,
    UnitSolver,
    ValueProblem,
)
from fxquant.solvers.bit_split import BitSplit
from fxquant.solvers.coordinate_descent import CoordinateDescent
from fxquant.solvers.cross_layer_equalization import CrossLayerEqualization
from fxquant.solvers.easyquant import EasyQuant
from fxquant.solvers.equalization import Equalization
from fxquant.solvers.gptq import GPTQ
from fxquant.solvers.reconstruct import Training
from fxquant.solvers.round_to_nearest import BiasCorrection, RoundToNearest
from fxquant.solvers.uwc import UWC, NetworkTuning

__all__ = [
    "BRECQ",
    "GPTQ",
    "UWC",
    "ActivationEqualization",
    "ActivationSteps",
    "AdaRound",
    "AttentionRound",
    "BiasCorrection",
    "BitSplit",
    "CoordinateDescent",
    "CrossLayerEqualization",
    "EasyQuant",
    "Equalization",
    "Layer",
    "LayerProblem",
    "LayerSolution",
    "LayerSolver",
    "NetworkTuning",
    "QDrop",
    "Reader",
    "RoundToNearest",
    "Scope",
    "Solver",
    "Training",
    "UnitProblem",
    "UnitSolution",
    "UnitSolver",
    "ValueProblem",
]
