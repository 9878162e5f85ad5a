"""The regions solvers work on: single layers, Basic-Units, or the whole network."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ir.samples import sliceable
from fxquant.ir.units import Unit, unit_of, units
from fxquant.solvers.base import Scope


def regions(gm: GraphModule, scope: Scope) -> tuple[Unit, ...]:
    """Consecutive regions that together hold every operator."""
    if scope is Scope.UNIT:
        return units(gm)
    operators = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    if scope is Scope.NETWORK:
        return (replace(unit_of(operators), name="network"),) if operators else ()
    return tuple(unit_of(members) for members in _layers(operators, sliceable(gm)))


def _layers(operators: list[Node], kept: frozenset[str]) -> list[list[Node]]:
    """Each layer alone; what lies between layers belongs to the layer behind it.

    No region ends while a value is alive that cannot be kept sample by sample.
    """
    result: list[list[Node]] = []
    members: list[Node] = []
    open_until = -1
    position = {n: i for i, n in enumerate(operators)}
    for index, node in enumerate(operators):
        members.append(node)
        if node.name not in kept or any(_takes_item(u) for u in node.users):
            open_until = max([open_until, *(position.get(u, index) for u in node.users)])
        if meta.is_layer(node) and index >= open_until:
            result.append(members)
            members = []
    if members:
        result.append(members)
    return result


def _takes_item(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"
