"""Activation equalization: every channel of a value fills the value's grid as well as it can.

Equalization by activations is the deployable form of per-channel activation scales: Wang et al.,
"Towards Accurate Post-training Network Quantization via Bit-Split and Stitching" (ICML 2020;
"error compensated activation quantization" moves them into the weights), and Xiao et al.,
"SmoothQuant", ICML 2023, equation 4, for the exponent. With [l_c, h_c] the range of channel c and
[L, H] that of the value, over the samples, and e_c(s) the squared error of the channel on a grid
with the ends s L and s H:

    rho_c   = max(l_c / L, h_c / H)             the part of the range the channel uses, at most 1
    sigma_c = argmin e_c(s) over rho_c 2^(-k/8)     where clipping and rounding balance
    s_c     = max(sigma_c, smallest)^strength

At strength 1 each channel is clipped where its own grid would clip it: with few bits the largest
elements of a channel lie far above that, by a factor that differs from channel to channel. Clamps
of the float network stay where they were (ir/floats.py). Channels that were 0 in all samples keep
s_c = 1. The publications scale by the ranges or their averages; the fit is our own choice.

A smaller activation error costs a larger weight error: a column times s_c < 1 is rounded on a grid
its row's largest weight sets, and its error is read by x_c / s_c. For a depthwise layer the row
holds one channel, and strength 1 is free. The publications leave the exponent to a search on the
task. Here each group of values that share factors takes the candidate that minimizes the sum of
the predicted noise over signal of the layers that read it:

    noise_o = sum_c w_oc^2 e_c(s_c)  +  left  sum_c D_o^2 / 12  Var(x_c) / s_c^2
    D_o = max_c |w_oc s_c| / q_max

(errors independent; constant errors of the weights go to the bias; `left` is what solvers that
compensate for errors leave of the weights'). This is our own choice too.

Symbols: s -> factors, rho -> used, sigma -> fitted, l/h -> statistics.low/high, D -> steps,
left -> weight_error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.channels import LayerChannels, along
from fxquant.solvers.equalization import Equalization, EqualizationProblem

# Parts of its range that a channel may be clipped at.
_SHRINKS = tuple(2 ** (-k / 8) for k in range(25))


@dataclass(frozen=True, slots=True)
class ActivationEqualization(Equalization):
    """Channels fill the grid of their value; see the module docstring.

    Attributes:
        strength: Exponent in [0, 1]; None weighs activation error against weight error, group by
            group.
        smallest: Smallest factor.
        weight_error: Part of the predicted weight error that counts in doing so.
    """

    strength: float | None = None
    smallest: float = 1 / 32
    weight_error: float = 0.3

    _CANDIDATES = (0.0, 0.25, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ConfigError(f"ActivationEqualization.strength={self.strength} is not in [0, 1]")
        if not 0 < self.smallest <= 1:
            raise ConfigError(f"ActivationEqualization.smallest={self.smallest} is not in (0, 1]")
        if not self.weight_error >= 0:
            raise ConfigError(f"ActivationEqualization.weight_error={self.weight_error} is below 0")

    def factors(self, problem: EqualizationProblem) -> Tensor:
        """See Equalization."""
        full = _fitted(problem).clamp(min=self.smallest)
        if self.strength is not None:
            return full**self.strength
        factors = torch.ones_like(full)
        for group in problem.groups():
            strengths = self._CANDIDATES if group.readers else (0.0,)
            trials = []
            for strength in strengths:
                trial = factors.clone()
                trial[group.classes] = full[group.classes] ** strength
                trials.append(trial)
            noises = [sum(self._noise(problem, r, t, full) for r in group.readers) for t in trials]
            factors = trials[noises.index(min(noises))]
        return factors

    def _noise(
        self, problem: EqualizationProblem, layer: LayerChannels, factors: Tensor, fitted: Tensor
    ) -> float:
        """Predicted noise over signal of a layer's result; `noise_o` of the module docstring."""
        name, weight = layer.source.name, problem.weights[layer.node.name].double()
        statistics, classes = problem.statistics[name], problem.classes.values[name]
        of_value, own = factors[classes], factors[layer.inputs]  # own: [I]
        low, high = (end * (fitted[classes] / of_value).amax() for end in problem.extent(name))
        step = (high - low) / problem.steps[name]
        error = statistics.error(of_value * step, of_value * low, of_value * high)
        variance, rounding = (along(t, layer.axis, len(own)) for t in (statistics.variance, error))
        signal = layer.scale_columns(weight.square(), variance).sum()
        of_activations = layer.scale_columns(weight.square(), rounding).sum()
        grid = meta.quant(layer.weight)
        assert grid is not None
        scaled = layer.scale_columns(weight, own)
        steps = scaled.flatten(1).abs().amax(1) / grid.spec.dtype.qmax  # [O]
        read = layer.scale_columns(torch.ones_like(weight), variance / own.square())
        of_weights = (steps.square() / 12 * read.flatten(1).sum(1)).sum()
        noise = of_activations + self.weight_error * of_weights
        return float(noise / signal) if float(signal) > 0 else 0.0


def _fitted(problem: EqualizationProblem) -> Tensor:
    """`sigma` of every class: where its error on the grids of its values is least."""
    used = _used(problem)
    errors = torch.zeros(len(_SHRINKS), problem.classes.count, dtype=torch.float64)
    for name, statistics in problem.statistics.items():
        (low, high), classes = problem.extent(name), problem.classes.values[name]
        step = (high - low) / problem.steps[name]
        scale = statistics.power.sum().clamp(min=1e-30)
        for row, shrink in zip(errors, _SHRINKS, strict=True):
            own = used[classes] * shrink
            error = statistics.error(own * step, own * low, own * high) / scale
            row.scatter_add_(0, classes.flatten(), error.flatten())
    best = torch.tensor(_SHRINKS, dtype=torch.float64)[errors.argmin(0)]
    best[0] = 1.0
    return used * best


def _used(problem: EqualizationProblem) -> Tensor:
    """`rho` of every class, the largest over its values; 1 where nothing was seen but zeros."""
    used = torch.zeros(problem.classes.count, dtype=torch.float64)
    for name, statistics in problem.statistics.items():
        low, high = problem.extent(name)
        part = torch.zeros_like(statistics.low)
        part = torch.maximum(part, statistics.high / high) if high > 0 else part
        part = torch.maximum(part, statistics.low / low) if low < 0 else part
        used = torch.maximum(used, problem.largest(name, part))
    used[0] = 1.0
    return torch.where(used > 0, used, 1.0)
