"""Cross-layer equalization: the ranges of the weights on both sides of a channel become equal.

With r1_c the range of the rows that make channel c and r2_c that of the columns that read it:

    s_c = sqrt(r1_c / r2_c)        for one pair of layers after the other, until nothing changes

Data-free, except that a clamp at u > 0 (ReLU6, which the paper replaces by ReLU) keeps its effect:
s_c in [m_c / u, 1] after dividing all factors of the value by the largest, m_c being the channel's
largest value over the samples.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.1, equation 11.

Symbols: s -> factors, r1 -> made, r2 -> read, m / u -> smallest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.solvers.equalization import Equalization, EqualizationProblem, Group


@dataclass(frozen=True, slots=True)
class CrossLayerEqualization(Equalization):
    """Equal weight ranges on both sides of every channel; see the module docstring.

    Attributes:
        iterations: Most sweeps over all values.
        limit: Factors stay in [1 / limit, limit].
    """

    iterations: int = 20
    limit: float = 32.0

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.limit >= 1:
            raise ConfigError(f"{self!r} is invalid", why="it needs iterations >= 1 and limit >= 1")

    def factors(self, problem: EqualizationProblem) -> Tensor:
        """See Equalization."""
        factors = torch.ones(problem.classes.count, dtype=torch.float64)
        smallest, bounded = _clamp_bounds(problem)
        groups = problem.groups()
        for _ in range(self.iterations):
            before = factors.clone()
            for group in groups:
                wanted = factors[group.classes] * _range_ratio(problem, group, factors)
                if bool(bounded[group.classes].any()):
                    wanted = torch.maximum(wanted / wanted.amax(), smallest[group.classes])
                factors[group.classes] = wanted.clamp(1 / self.limit, self.limit)
            if float((factors / before).log().abs().amax()) < 1e-3:
                break
        return factors


def _range_ratio(problem: EqualizationProblem, group: Group, factors: Tensor) -> Tensor:
    """`sqrt(r1 / r2)` of a group's classes under the present factors, 1 where one is 0; `[K]`."""
    made = torch.zeros(problem.classes.count, dtype=torch.float64)
    read = torch.zeros_like(made)
    ours = torch.zeros_like(made, dtype=torch.bool)
    ours[group.classes] = True
    for layer in problem.classes.layers:
        if not bool(ours[layer.inputs].any() or ours[layer.outputs].any()):
            continue
        weight = problem.weights[layer.node.name].double()
        outputs = factors[layer.outputs].reshape([-1] + [1] * (weight.ndim - 1))
        weight = layer.scale_columns(weight, factors[layer.inputs]).abs() / outputs
        made = made.scatter_reduce(0, layer.outputs, weight.flatten(1).amax(1), "amax")
        read = read.scatter_reduce(0, layer.inputs, layer.largest_columns(weight), "amax")
    made, read = made[group.classes], read[group.classes]
    return torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0)


def _clamp_bounds(problem: EqualizationProblem) -> tuple[Tensor, Tensor]:
    """Smallest factor at which no clamp clips a sample, and which classes are clamped."""
    smallest = torch.zeros(problem.classes.count, dtype=torch.float64)
    for name, (low, high) in problem.classes.clamps.items():
        statistics = problem.statistics[name]
        for bound, seen in ((low, statistics.low), (high, statistics.high)):
            if bound:
                smallest = torch.maximum(smallest, problem.largest(name, seen / bound))
    clamped = torch.zeros_like(smallest, dtype=torch.bool)
    for name in problem.classes.clamps:
        clamped[problem.classes.values[name].flatten()] = True
    return smallest, clamped
