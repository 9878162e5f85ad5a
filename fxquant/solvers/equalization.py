"""Channel factors: what equalizations choose, and what they know.

A value has one grid for all its channels, so a channel that uses a fraction of the range gets a
fraction of the codes. Dividing channel c by a factor s_c in the layer that makes it, and
multiplying by it in the layers that read it, changes no result (passes/equalize.py) but moves
error between activations and weights:

    y_o = sum_c w_oc x_c = sum_c (w_oc s_c) (x_c / s_c)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.ir import meta
from fxquant.ir.channels import ChannelClasses, LayerChannels, channel_classes
from fxquant.solvers.base import Solver
from fxquant.solvers.channel_statistics import ChannelStatistics, observe_channels


@dataclass(frozen=True, slots=True, eq=False)
class EqualizationProblem:
    """A network whose channels may be scaled.

    Attributes:
        classes: Which channels share a factor, and the layers that make and read them.
        weights: Float weights by name of the layer, `[O, I/groups, ...]`.
        statistics: Of the values in `classes.values`, by name.
        steps: Steps between the ends of their grids, by name.
    """

    classes: ChannelClasses
    weights: Mapping[str, Tensor]
    statistics: Mapping[str, ChannelStatistics]
    steps: Mapping[str, int]

    @classmethod
    def of(cls, gm: GraphModule, batches: Iterable[Sequence[Tensor]]) -> EqualizationProblem:
        """That of an ANNOTATED graph, observed on batches of its inputs."""
        classes = channel_classes(gm)
        weights = {x.node.name: meta.tensor_of(gm, x.weight) for x in classes.layers}
        grids = {n.name: meta.quant(n) for n in gm.graph.nodes if n.op != "get_attr"}
        steps = {n: (1 << grid.spec.dtype.bits) - 1 for n, grid in grids.items() if grid}
        return cls(classes, weights, observe_channels(gm, classes, batches), steps)

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


Step = Solver | Equalization  # of a recipe
