"""Basic-Units: the regions of the graph that calibration treats as one.

On the value graph, a node that dominates the output is passed by every path from the input. The
dominators form a chain; what lies between two neighbours has one entry and one exit: a residual
block, an inverted residual, an inception block, or a single operator of a plain chain.

Single layers of a chain are joined, because neighbours can make up for each other's errors: a
depthwise layer with the pointwise layer behind it, the three layers of an inverted residual without
addition, a squeeze layer with the branches that expand it, or two layers of a plain network. The
first layer stays alone (it is 8 bits wide in low-bit networks), and an activation function stays
with the layer before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ops import elementwise

_SOURCE, _SINK = "(inputs)", "(outputs)"
_ACTIVATIONS = frozenset(definition.function for definition in elementwise.DEFS)
_LONGEST = 4  # layers of a joined chain


@dataclass(frozen=True, slots=True)
class Unit:
    """A region between two cut points.

    Attributes:
        name: Module path or node name of its result.
        nodes: Names of its operators in execution order.
        inputs: Names of the values it reads from outside.
        output: Name of its result; for the last unit of a graph with several outputs, the last
            operator.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str


def value_graph(gm: GraphModule) -> nx.DiGraph:
    """The operators and inputs as a networkx graph; constants are left out."""
    graph = nx.DiGraph()
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            continue
        name = _SINK if node.op == "output" else node.name
        graph.add_node(name)
        if node.op == "placeholder":
            graph.add_edge(_SOURCE, name)
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                graph.add_edge(source.name, name)
    for name in [n for n in graph if n != _SOURCE and graph.in_degree(n) == 0]:
        graph.add_edge(_SOURCE, name)
    return graph


def cut_points(gm: GraphModule) -> tuple[str, ...]:
    """Names of the nodes on every path from input to output, in order."""
    graph = value_graph(gm)
    dominators = nx.immediate_dominators(graph, _SOURCE)
    chain: list[str] = []
    node = dominators[_SINK]
    while node is not None and node != _SOURCE:
        chain.append(node)
        node = dominators[node]
    return tuple(reversed(chain))


def units(gm: GraphModule) -> tuple[Unit, ...]:
    """Partition the operators of a graph into Basic-Units, in execution order."""
    groups: list[_Group] = []
    for members in _regions(gm):
        group = _Group(members, first=not any(g.layers for g in groups))
        if groups and groups[-1].accepts(group):
            groups[-1] = groups[-1].joined(group)
        else:
            groups.append(group)
    return tuple(unit_of(group.members) for group in groups)


def _regions(gm: GraphModule) -> Iterator[list[Node]]:
    """The operators between neighbouring cut points."""
    cuts = set(cut_points(gm))
    members: list[Node] = []
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        members.append(node)
        if node.name in cuts and "shape" in node.meta:  # several results are no value to cut at
            yield members
            members = []
    if members:
        yield members


class _Group:
    """Neighbouring regions that form a unit.

    Args:
        members: The operators.
        first: Whether no layer comes before them.
    """

    def __init__(self, members: list[Node], first: bool) -> None:
        self.members = members
        self.layers = [n for n in members if meta.is_weighted(n)]
        self.closed = len(members) > 1 or first or not self.layers

    def accepts(self, region: _Group) -> bool:
        """Whether the next region belongs to this unit."""
        single = len(region.members) == 1
        if single and not region.layers:
            return bool(self.layers) and region.members[0].target in _ACTIVATIONS
        return not self.closed and bool(region.layers)

    def joined(self, region: _Group) -> _Group:
        """This unit with the next region."""
        result = _Group(self.members + region.members, first=False)
        result.closed = self.closed
        if region.layers:
            last = result.layers[-1]
            block = len(region.members) > 1
            result.closed = block or (not _depthwise(last) or len(result.layers) >= _LONGEST)
        return result


def _depthwise(node: Node) -> bool:
    groups: Any = node.kwargs.get("groups", 1)
    return 1 < groups == meta.shape_of(node)[1]


def unit_of(members: list[Node]) -> Unit:
    """The unit made of consecutive operators."""
    inside = set(members)
    inputs = {
        source.name: None
        for node in members
        for source in node.all_input_nodes
        if source not in inside and source.op != "get_attr"
    }
    last = members[-1]
    name = meta.provenance(last).name or last.name
    return Unit(name, tuple(n.name for n in members), tuple(inputs), last.name)
