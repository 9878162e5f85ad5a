"""AdaRound and the block settings built on it: learned rounding up or down.

Problem: choose for every weight the code below or above it:

    w_q = s * clip(floor(w / s) + h(V), qmin, qmax)
    h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1),     zeta = 1.1, gamma = -0.1
    min   loss + lambda * mean(1 - |2 h(V) - 1|^beta)

`beta` falls from 20 to 2 after the first fifth of the iterations, which do without the penalty, so
that `h` ends at 0 or 1. V starts where `h` is the fractional part of `w / s`.

* `AdaRound`: one layer at a time, activations as the prefix left them.
  Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
* `BRECQ`: a Basic-Unit at a time, activations inside it in float; follow it by `ActivationSteps`.
  Li et al., "BRECQ", ICLR 2021 (the squared-error form of its public settings).
* `QDrop`: a Basic-Unit, inputs mixed and activations dropped with probability 1/2, activation
  steps learned with the rounding. Wei et al., "QDrop", ICLR 2022.

Their papers run 10,000 to 20,000 iterations; the defaults here are what minutes on a CPU allow.
The published lambda belongs to an unnormalized loss; here the penalty counts relative to the loss
the region starts with.

Symbols: h -> Rectified.h, V -> variable, lambda -> penalty_weight, beta -> beta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.numerics.types import IntType
from fxquant.solvers.base import Scope
from fxquant.solvers.reconstruct import Reconstruction, Training
from fxquant.solvers.rounding import Rounding

_ZETA, _GAMMA = 1.1, -0.1
_WARM_UP = 0.2
_BETAS = 20.0, 2.0


@dataclass(frozen=True, slots=True)
class Rectified(Rounding):
    """Rounding by the rectified sigmoid.

    Attributes:
        penalty_weight: lambda, relative to the loss at the start.
    """

    penalty_weight: float = 1.0

    def start(self, ratio: Tensor, codes: Tensor, dtype: IntType, rng: torch.Generator) -> Tensor:
        """Where `h` is the fractional part; the codes of earlier steps do not count."""
        fraction = (ratio - ratio.floor()).clamp(1e-3, 1 - 1e-3)
        return -torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1)

    @staticmethod
    def h(variable: Tensor) -> Tensor:
        """Soft choice between the code below (0) and above (1)."""
        return (torch.sigmoid(variable) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def codes(self, ratio: Tensor, variable: Tensor, dtype: IntType) -> Tensor:
        """See Rounding."""
        return (ratio.floor() + self.h(variable)).clamp(dtype.qmin, dtype.qmax)

    def hard(self, ratio: Tensor, variable: Tensor, dtype: IntType) -> Tensor:
        """See Rounding."""
        return (ratio.floor() + (self.h(variable) >= 0.5)).clamp(dtype.qmin, dtype.qmax)

    def penalty(self, variable: Tensor, progress: float) -> Tensor | None:
        """See Rounding."""
        if progress < _WARM_UP:
            return None
        done = (progress - _WARM_UP) / (1 - _WARM_UP)
        beta = _BETAS[0] + (_BETAS[1] - _BETAS[0]) * done
        return self.penalty_weight * (1 - (2 * self.h(variable) - 1).abs().pow(beta)).mean()


_WEIGHTS_ONLY = Training(code_rate=1e-2, scale_rate=0.0, bias_rate=0.0, activation_rate=0.0)


@dataclass(frozen=True, slots=True)
class AdaRound(Reconstruction):
    """See the module docstring."""

    training: Training = _WEIGHTS_ONLY
    region: Scope = Scope.LAYER
    rounding: Rounding = Rectified()


@dataclass(frozen=True, slots=True)
class BRECQ(Reconstruction):
    """See the module docstring."""

    training: Training = replace(_WEIGHTS_ONLY, drop=1.0)
    rounding: Rounding = Rectified()


@dataclass(frozen=True, slots=True)
class QDrop(Reconstruction):
    """See the module docstring."""

    training: Training = replace(_WEIGHTS_ONLY, drop=0.5, mix=0.5, activation_rate=2e-3)
    rounding: Rounding = Rectified()


@dataclass(frozen=True, slots=True)
class ActivationSteps(Reconstruction):
    """Learns the activation scales of a unit and leaves its weights (LSQ: Esser et al., 2020)."""

    training: Training = Training(
        iterations=200, code_rate=0.0, scale_rate=0.0, bias_rate=0.0, activation_rate=2e-3
    )
