"""Channel factors: cross-layer equalization, and equalization by the activations' ranges.

A value has one grid for all its channels, so a channel that uses a fraction of the range gets a
fraction of the codes. Dividing channel c by a factor s_c in the layer that makes it, and
multiplying by it in the layers that read it, changes no result (passes/equalize.py) but moves
error between activations and weights:

    y_o = sum_c w_oc x_c = sum_c (w_oc s_c) (x_c / s_c)

Cross-layer equalization (Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019, section 4.1, equation 11) makes the ranges of the weights on both
sides equal, r1_c of the rows that make the channel, r2_c of the columns that read it:

    s_c = sqrt(r1_c / r2_c)        for one pair of layers after the other, until nothing changes

It is data-free, except that a clamp at u > 0 (ReLU6, which the paper replaces by ReLU) keeps its
effect: s_c in [m_c / u, 1] after dividing all factors of the value by the largest, m_c being the
channel's largest value over the samples.

Equalization by activations is the deployable form of per-channel activation scales: Wang et al.,
"Towards Accurate Post-training Network Quantization via Bit-Split and Stitching" (ICML 2020;
"error compensated activation quantization" moves them into the weights), and Xiao et al.,
"SmoothQuant", ICML 2023, equation 4, for the exponent. With [l_c, h_c] the range of channel c and
[L, H] that of the value, over the samples:

    rho_c = max(l_c / L, h_c / H)          the part of the range the channel uses, at most 1
    s_c   = max(rho_c, smallest)^strength

At strength 1 each channel fills the range. The range does not grow at any strength, and a clamp
at H or above clips nothing on the samples. Channels that were 0 in all samples keep s_c = 1.

A smaller activation error costs a larger weight error: a column times s_c < 1 is rounded on a grid
its row's largest weight sets, and its error is read by x_c / s_c. For a depthwise layer the row
holds one channel, and strength 1 is free. The publications leave the exponent to a search on the
task. Here each group of values that share factors takes the candidate that minimizes the sum of
the predicted noise over signal of the layers that read it:

    noise_o = sum_c w_oc^2 min(p_c (s_c D_x)^2 / 12, E x_c^2)  +  sum_c D_o^2 / 12  Var(x_c) / s_c^2
    D_x = (H - L) / (2^b - 1) of x / s,     D_o = max_c |w_oc s_c| / q_max

(rounding errors uniform and independent; p_c: fraction of nonzero elements, as zeros are exact;
constant errors of the weights go to the bias). This is our own choice.

Symbols: s -> factors, rho -> used, l/h -> statistics.low/high, strength -> strength, D -> step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.channels import ChannelClasses, LayerChannels, along
from fxquant.solvers.channel_statistics import ChannelStatistics


@dataclass(frozen=True, slots=True, eq=False)
class EqualizationProblem:
    """A network whose channels may be scaled.

    Attributes:
        classes: Which channels share a factor, and the layers that make and read them.
        weights: Float weights by name of the layer, `[O, I/groups, ...]`.
        statistics: Of the values in `classes.values`, by name.
    """

    classes: ChannelClasses
    weights: Mapping[str, Tensor]
    statistics: Mapping[str, ChannelStatistics]

    def groups(self) -> list[Group]:
        """Values that share factors, directly or through others, in execution order."""
        graph = nx.Graph()
        for name, classes in self.classes.values.items():
            free = [c for c in classes.unique().tolist() if c]
            graph.add_edges_from((name, c) for c in free)
        parts = [set(part) for part in nx.connected_components(graph)]
        return [self._group(part) for part in parts]

    def _group(self, part: set[str | int]) -> Group:
        classes = torch.tensor(sorted(c for c in part if isinstance(c, int)))
        values = tuple(name for name in self.classes.values if name in part)
        readers = tuple(x for x in self.classes.layers if x.source.name in part)
        return Group(classes, values, readers)

    def extent(self, name: str) -> tuple[Tensor, Tensor]:
        """Range of a value over all channels, with 0 in it."""
        statistics = self.statistics[name]
        return statistics.low.amin().clamp(max=0), statistics.high.amax().clamp(min=0)

    def largest(self, name: str, per_element: Tensor) -> Tensor:
        """Largest number a class has among the elements of one value, 0 where it has none."""
        classes = self.classes.values[name].flatten()
        zeros = torch.zeros(self.classes.count, dtype=torch.float64)
        return zeros.scatter_reduce(0, classes, per_element.flatten(), "amax")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Values that share factors.

    Attributes:
        classes: Their classes, int64 `[K]`.
        values: Their names.
        readers: The layers that read one of them.
    """

    classes: Tensor
    values: tuple[str, ...]
    readers: tuple[LayerChannels, ...]


class Equalization(ABC):
    """A step before all solvers: scales channels of the float network."""

    @abstractmethod
    def factors(self, problem: EqualizationProblem) -> Tensor:
        """Positive factor of every class, float64 `[classes.count]`; 1 for class 0."""


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


@dataclass(frozen=True, slots=True)
class ActivationEqualization(Equalization):
    """Channels fill the range of their value; see the module docstring.

    Attributes:
        strength: Exponent in [0, 1]; None weighs activation error against weight error, group by
            group.
        smallest: Smallest factor.
    """

    strength: float | None = None
    smallest: float = 1 / 32

    _CANDIDATES = (0.0, 0.25, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ConfigError(f"ActivationEqualization.strength={self.strength} is not in [0, 1]")
        if not 0 < self.smallest <= 1:
            raise ConfigError(f"ActivationEqualization.smallest={self.smallest} is not in (0, 1]")

    def factors(self, problem: EqualizationProblem) -> Tensor:
        """See Equalization."""
        full = _used(problem).clamp(min=self.smallest)
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
            noises = [sum(_noise(problem, r, t) for r in group.readers) for t in trials]
            factors = trials[noises.index(min(noises))]
        return factors


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


def _noise(problem: EqualizationProblem, layer: LayerChannels, factors: Tensor) -> float:
    """Predicted noise over signal of a layer's result; `noise_o` of the module docstring."""
    name, weight = layer.source.name, problem.weights[layer.node.name].double()
    statistics = problem.statistics[name]
    of_value = factors[problem.classes.values[name]]
    grids = meta.quant(layer.source), meta.quant(layer.weight)
    assert grids[0] is not None and grids[1] is not None
    bits, largest_code = grids[0].spec.dtype.bits, grids[1].spec.dtype.qmax
    low, high = (statistics.low / of_value).amin(), (statistics.high / of_value).amax()
    step = (high.clamp(min=0) - low.clamp(max=0)) / ((1 << bits) - 1)
    own = factors[layer.inputs]  # [I]
    variance, density, power = (
        along(t, layer.axis, len(own))
        for t in (statistics.variance, statistics.density, statistics.power)
    )
    rounding = torch.minimum(density * (own * step) ** 2 / 12, power)
    activation = layer.scale_columns(weight.square(), rounding).sum()
    scaled = layer.scale_columns(weight, own)
    steps = scaled.flatten(1).abs().amax(1) / largest_code  # [O]
    read = layer.scale_columns(torch.ones_like(weight), variance / own.square())
    rounded = (steps.square() / 12 * read.flatten(1).sum(1)).sum()
    signal = layer.scale_columns(weight.square(), variance).sum()
    return float((activation + rounded) / signal) if float(signal) > 0 else 0.0


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
