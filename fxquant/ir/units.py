"""Basic-Units: the regions of the graph that calibration treats as one.

On the value graph, a node that dominates the output is passed by every path from the input. The
dominators form a chain; what lies between two neighbours has one entry and one exit: a residual
block, an inverted residual, a fire or inception block, or a single layer of a plain chain.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from torch.fx import GraphModule, Node

from fxquant.ir import meta

_SOURCE, _SINK = "(inputs)", "(outputs)"


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
    cuts = set(cut_points(gm))
    result: list[Unit] = []
    members: list[Node] = []
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        members.append(node)
        if node.name in cuts:
            result.append(_unit(members))
            members = []
    if members:
        result.append(_unit(members))
    return tuple(result)


def _unit(members: list[Node]) -> Unit:
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
