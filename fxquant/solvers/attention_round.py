"""Attention Round: every code is reachable, the nearer the more likely.

Problem: a weight may end at any code, not only at its two neighbours. A trained offset decides:

    w_q = s * clip(round(w / s + alpha), qmin, qmax),       alpha ~ N(0, tau^2) at the start
    P(w -> s k) = Phi((k + 1/2 - w/s) / tau) - Phi((k - 1/2 - w/s) / tau)

The gradient passes straight through the rounding and is damped by the attention factor: moves away
from the weight count less the further the offset already is, moves back count more:

    d w_q / d alpha = s * a,    g = d loss / d w_q
    a = 1/2 - 1/2 erf(alpha / (sqrt2 tau))   if g < 0      (descent raises alpha)
    a = 1/2 + 1/2 erf(alpha / (sqrt2 tau))   if g > 0      (descent lowers alpha)

There is no penalty and no annealing: the forward pass is always hard.

Source: Diao, Li, Xu, Hao, "Attention Round for Post-Training Quantization", arXiv 2207.03088. The
abstract gives the idea (all codes, Gaussian decay, 1,024 images, about ten minutes); the additive
form and the erf-shaped factor are a reconstruction. Not in the abstract: offsets start at the codes
found so far instead of at random (`spread` > 0 adds the random start), and the best iterate counts.

Symbols: alpha -> variable, tau -> tau, Phi -> normal distribution, a -> attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.numerics.types import IntType
from fxquant.solvers.reconstruct import Reconstruction
from fxquant.solvers.rounding import Rounding, near


def code_probability(ratio: Tensor, code: int, tau: float, dtype: IntType) -> Tensor:
    """`P(w -> s * code)` for weights in units of their step; end codes absorb the tails."""

    def phi(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(x / (tau * math.sqrt(2))))

    above = torch.ones_like(ratio) if code == dtype.qmax else phi(code + 0.5 - ratio)
    below = torch.zeros_like(ratio) if code == dtype.qmin else phi(code - 0.5 - ratio)
    return above - below


class _Attention(torch.autograd.Function):
    """`clip(round(ratio + alpha), low, high)` with the damped gradient."""

    @staticmethod
    def forward(
        ctx: Any, ratio: Tensor, alpha: Tensor, low: float, high: float, tau: float
    ) -> Tensor:
        moved = ratio + alpha
        ctx.save_for_backward(alpha, (moved >= low - 0.5) & (moved <= high + 0.5))
        ctx.tau = tau
        return moved.round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None]:
        alpha, inside = ctx.saved_tensors
        reach = torch.erf(alpha / (ctx.tau * math.sqrt(2)))
        attention = 0.5 + 0.5 * reach * grads[0].sign()
        return None, grads[0] * attention * inside, None, None, None


@dataclass(frozen=True, slots=True)
class Attention(Rounding):
    """Rounding with an offset under attention.

    Attributes:
        tau: Width of the Gaussian, in steps.
        spread: Standard deviation of the random part of the start, in steps.
    """

    tau: float = 0.5
    spread: float = 0.0

    def start(self, ratio: Tensor, codes: Tensor, dtype: IntType, rng: torch.Generator) -> Tensor:
        """The smallest offset that yields the codes, plus noise."""
        alpha = near(ratio, codes) - ratio
        if self.spread == 0:
            return alpha
        return alpha + self.spread * torch.randn(alpha.shape, generator=rng)

    def codes(self, ratio: Tensor, variable: Tensor, dtype: IntType) -> Tensor:
        """See Rounding."""
        bounds = float(dtype.qmin), float(dtype.qmax)
        result = _Attention.apply(ratio, variable, *bounds, self.tau)
        assert isinstance(result, Tensor)
        return result


@dataclass(frozen=True, slots=True)
class AttentionRound(Reconstruction):
    """See the module docstring."""

    rounding: Rounding = Attention()
