"""Float islands: which nodes stay in float, cut into subgraphs that can run as one call each.

An island is a connected set of float nodes of equal depth, where depth counts how often the path
from the inputs enters float from integer code. Any way out of an island and back raises the
depth, so no island depends on itself. Moves of float32 values (reshape, permute, ...) and
arithmetic with a constant that touch no island are ordinary kernels; max pooling is one everywhere.

Between islands go float32 values. Others (a condition, indices) are computed again where they are
read: their nodes help a second island.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from tvm_backend.arithmetic import is_arithmetic
from tvm_backend.emit.table import EMIT, FLOATS, MOVES
from tvm_backend.graph_view import dtype_of, nodes_in

_OPERATIONS = ("call_function", "call_method", "call_module")


@dataclass(frozen=True, slots=True, eq=False)
class IslandNodes:
    """Nodes of one island.

    Attributes:
        nodes: In execution order.
        helpers: Nodes of other islands that it computes, too, before its own.
        inputs: Nodes outside whose float values it reads.
        outputs: Its nodes whose values are read outside.
    """

    nodes: tuple[Node, ...]
    helpers: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


def island_nodes(graph_module: GraphModule, constants: Mapping[Node, Tensor]) -> set[Node]:
    """All nodes that stay in float."""
    operations = [n for n in graph_module.graph.nodes if n.op in _OPERATIONS and n not in constants]
    light = {
        n for n in operations if (n.target in MOVES and _is_float(n)) or is_arithmetic(n, constants)
    }
    found = {n for n in operations if n not in light and not _is_kernel(n)}
    grown = True
    while grown:
        touching = {
            n
            for n in light - found
            if any(m in found for m in (*nodes_in((n.args, n.kwargs)), *n.users))
        }
        found |= touching
        grown = bool(touching)
    return found


def _is_float(node: Node) -> bool:
    dtype = dtype_of(node)
    return dtype is not None and dtype.is_floating_point


def _is_kernel(node: Node) -> bool:
    """Whether there is a kernel: on codes, across the boundary to them, or on floats."""
    if node.target not in EMIT:
        return False
    first = next(nodes_in(node.args), None)
    on_floats = _is_float(node) and first is not None and _is_float(first)
    return node.target in FLOATS if on_floats else True


def partition(
    graph_module: GraphModule, floats: set[Node], constants: Mapping[Node, Tensor]
) -> tuple[IslandNodes, ...]:
    """Cut the float nodes into islands."""
    depth: dict[Node, int] = {}
    for node in graph_module.graph.nodes:
        sources = list(nodes_in((node.args, node.kwargs)))
        depth[node] = max(
            (depth[s] + (node in floats and s not in floats) for s in sources), default=0
        )
    groups: dict[Node, set[Node]] = {}
    for node in graph_module.graph.nodes:
        if node not in floats:
            continue
        merged = {node}
        for source in nodes_in((node.args, node.kwargs)):
            if source in floats and depth[source] == depth[node]:
                merged |= groups[source]
        for member in merged:
            groups[member] = merged
    order = {n: i for i, n in enumerate(graph_module.graph.nodes)}
    distinct = {id(g): sorted(g, key=order.__getitem__) for g in groups.values()}
    return tuple(_island(nodes, floats, constants) for nodes in distinct.values())


def _island(nodes: list[Node], floats: set[Node], constants: Mapping[Node, Tensor]) -> IslandNodes:
    inside, helpers = set(nodes), _helpers(nodes, floats)
    inputs = dict.fromkeys(
        s
        for n in (*helpers, *nodes)
        for s in nodes_in((n.args, n.kwargs))
        if s not in inside and s not in helpers and s not in constants
    )
    outputs = [
        n for n in nodes if any(_reads(user, n, floats) for user in n.users if user not in inside)
    ]
    return IslandNodes(tuple(nodes), tuple(helpers), tuple(inputs), tuple(outputs))


def _helpers(nodes: list[Node], floats: set[Node]) -> list[Node]:
    """What other islands compute that is read here and no float32, in execution order."""
    inside, found = set(nodes), dict[Node, None]()

    def visit(node: Node) -> None:
        for source in nodes_in((node.args, node.kwargs)):
            if source in floats and source not in inside and not _passes(source):
                visit(source)
                found[source] = None

    for node in nodes:
        visit(node)
    return list(found)


def _passes(node: Node) -> bool:
    """Whether islands pass a value on."""
    return dtype_of(node) == torch.float32


def _reads(user: Node, node: Node, floats: set[Node]) -> bool:
    """Whether a node outside of the island gets its value from there."""
    return _passes(node) or user not in floats


def island_module(
    graph_module: GraphModule, island: IslandNodes, constants: Mapping[Node, Tensor]
) -> GraphModule:
    """The island as a module of its own, returning a tuple."""
    graph = Graph()
    env: dict[Node, Node] = {}
    root = torch.nn.Module()
    for name, module in graph_module.named_children():
        root.add_module(name, module)
    for node in island.inputs:
        env[node] = graph.placeholder(node.name)
    for node in (*island.helpers, *island.nodes):
        for source in nodes_in((node.args, node.kwargs)):
            if source not in env:
                name = f"constant_{source.name}"
                root.register_buffer(name, constants[source])
                env[source] = graph.get_attr(name)
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[n] for n in island.outputs))
    return GraphModule(root, graph)
