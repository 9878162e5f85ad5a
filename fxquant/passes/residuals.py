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
from fxquant.ops.arithmetic import requantize


def residual_values(gm: GraphModule) -> list[Node]:
    """Results of integer operators that are sums, or added to something, and not only for layers.

    Needs the float reasons of an ANNOTATED graph. Values on the grid of another are not listed.
    """
    found: dict[Node, None] = {}
    for node in gm.graph.nodes:
        summands = meta.summands(node)
        for value in (*summands, node) if summands else ():
            owner = meta.grid_owner(value)
            if meta.runs_on_integers(owner) and not _only_for_layers(owner):
                found[owner] = None
    return list(found)


def requantize_for_layers(gm: GraphModule, value: Node) -> None:
    """Let layers read copies of a value, and of what moves it."""
    readers = [user for user in value.users if _multiplies(user, value)]
    movers = [user for user in value.users if meta.shares_grid(user)]
    if readers:
        copy = insert_copy(gm, value)
        for reader in readers:
            reader.args = (copy, *reader.args[1:])
    for mover in movers:
        requantize_for_layers(gm, mover)


def copies(value: Node) -> Iterator[Node]:
    """What `requantize_for_layers` has inserted for a value."""
    for user in value.users:
        if user.target is requantize:
            yield user
        elif meta.shares_grid(user):
            yield from copies(user)


def insert_copy(gm: GraphModule, value: Node) -> Node:
    """A requantize node of a value, without users."""
    with gm.graph.inserting_after(value):
        copy = gm.graph.create_node(
            "call_function", requantize, (value,), name=f"{value.name}_requantize"
        )
    infer_shape(copy)
    meta.set_provenance(copy, meta.provenance(value))
    return copy


def _multiplies(node: Node, value: Node) -> bool:
    """Whether an operator multiplies a value by its weights."""
    return meta.is_layer(node) and node.args[0] is value


def _only_for_layers(value: Node) -> bool:
    """Whether nothing but the products of layers depends on a value."""
    return all(
        (_multiplies(user, value) and value not in meta.summands(user))
        or (meta.shares_grid(user) and _only_for_layers(user))
        for user in value.users
    )
