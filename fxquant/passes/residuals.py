"""Keep residual sums on finer grids than the layers that read them.

A block of a residual network adds its result to the value it started from. Every rounding of that
value stays in all sums behind it, so with few bits it, not the layers, makes the error. Layers
multiply narrow codes; a sum does not need to:

    x -> layer, add           ->     x (8 bits) -> add
                                     x -> requantize (4 bits) -> layer

before and after. "Bit-Split and Stitching" (Wang et al., ICML 2020), BRECQ (Li et al., ICLR 2021)
and QDrop (Wei et al., ICLR 2022) do not quantize these values at all where they are added.

A sum that only layers read is rounded to their grid at once: nothing would be kept by a finer one.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ir.build import infer_shape
from fxquant.ops import Grid
from fxquant.ops.arithmetic import requantize


def residual_values(gm: GraphModule) -> list[Node]:
    """Results of integer operators that are sums, or added to something, and not only for layers.

    Needs the float reasons of an ANNOTATED graph. Values on the grid of another are not listed.
    """
    found: dict[Node, None] = {}
    for node in gm.graph.nodes:
        if meta.runs_on_integers(node):
            for term in (*_terms(node), node):
                owner = _grid_owner(term)
                if _terms(node) and owner is not None and not _only_for_layers(owner):
                    found[owner] = None
    return list(found)


def requantize_for_layers(gm: GraphModule, value: Node) -> Iterator[Node]:
    """Let layers read copies of a value, and of what moves it; yields the copies' nodes."""
    readers = [user for user in value.users if _multiplies(user, value)]
    movers = [user for user in value.users if _moves(user)]
    if readers:
        copy = insert_copy(gm, value)
        for reader in readers:
            reader.args = (copy, *reader.args[1:])
        yield copy
    for mover in movers:
        yield from requantize_for_layers(gm, mover)


def insert_copy(gm: GraphModule, value: Node) -> Node:
    """A requantize node of a value, without users."""
    with gm.graph.inserting_after(value):
        copy = gm.graph.create_node(
            "call_function", requantize, (value,), name=f"{value.name}_requantize"
        )
    infer_shape(copy)
    meta.set_provenance(copy, meta.provenance(value))
    return copy


def _terms(node: Node) -> list[Node]:
    """The operands an operator adds."""
    definition = meta.opdef(node)
    assert definition is not None
    bound = definition.bind(node)
    return [bound[name] for name in definition.summed if name in bound]


def _multiplies(node: Node, value: Node) -> bool:
    """Whether an operator multiplies a value by its weights."""
    definition = meta.opdef(node)
    if definition is None or not definition.weighted or not meta.runs_on_integers(node):
        return False
    return definition.bind(node)["x"] is value


def _moves(node: Node) -> bool:
    if not meta.runs_on_integers(node):
        return False
    definition = meta.opdef(node)
    return definition is not None and definition.grid is Grid.SHARED


def _only_for_layers(value: Node) -> bool:
    """Whether nothing but the products of layers depends on a value."""
    return all(
        (_multiplies(user, value) and value not in _terms(user))
        or (_moves(user) and _only_for_layers(user))
        for user in value.users
    )


def _grid_owner(node: Node) -> Node | None:
    """The integer operator on whose grid a value lies, None if that is another kind of node."""
    while _moves(node):
        node = node.all_input_nodes[0]
    return node if meta.runs_on_integers(node) else None
