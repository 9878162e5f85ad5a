"""Sums of linear branches that one convolution could compute.

Blocks that are trained with parallel branches (RepVGG, MobileOne, RepViT, FastViT, YOLOv6) are
meant to be merged before they are deployed: convolutions and batch norms of one value, added
without an activation between them, are one convolution. Unmerged they cost every branch, and each
sum rounds. fxquant does not merge by itself: a merged weight is another one, which may lose more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ops import arithmetic, conv

REMEDY = (
    "merge them before prepare, with the code that came with the network: switch_to_deploy(), "
    "reparameterize(), timm.utils.reparameterize_model"
)
_LINEAR = (arithmetic.add, conv.conv2d)


@dataclass(frozen=True, slots=True)
class Branches:
    """A sum that one convolution could compute.

    Attributes:
        node: The sum.
        module: Module path it comes from.
        source: The value that all branches read.
        convolutions: Their convolutions and batch norms, in execution order.
        identity: Whether the value itself is added, too.
    """

    node: str
    module: str
    source: str
    convolutions: tuple[str, ...]
    identity: bool

    def __str__(self) -> str:
        identity = " and the value itself" if self.identity else ""
        return (
            f"{self.node} adds {len(self.convolutions)} convolutions of {self.source}{identity} "
            f"({', '.join(self.convolutions)})"
        )


def linear_branches(gm: GraphModule) -> tuple[Branches, ...]:
    """All such sums of an annotated graph, in execution order."""
    found: list[Branches] = []
    inner: set[Node] = set()
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    for node in reversed(gm.graph.nodes):
        if node in inner or node.target not in _LINEAR:
            continue
        leaves = sorted(_leaves(node, inner), key=lambda leaf: order[leaf])
        found += _branches(node, leaves)
    return tuple(reversed(found))


def _leaves(node: Node, inner: set[Node]) -> list[Node]:
    """What a node adds up: convolutions and other values; the sums between go to `inner`."""
    definition, bound = meta.opdef(node), _bound(node)
    assert definition is not None
    leaves = [node] if node.target is conv.conv2d else []
    for addend in [bound[name] for name in definition.summed if isinstance(bound.get(name), Node)]:
        if _is_inner(addend):
            inner.add(addend)
            leaves = [*_leaves(addend, inner), *leaves]
        else:
            leaves.append(addend)
    return leaves


def _is_inner(node: Node) -> bool:
    """Whether a sum reads nothing but this linear operator's result, and nobody else does."""
    linear = node.target in _LINEAR and node.kwargs.get("clamp") is None
    return linear and len(node.users) == 1


def _branches(node: Node, leaves: Sequence[Node]) -> Iterator[Branches]:
    """Convolutions of one value among the leaves of a sum."""
    branches: dict[Node, list[Node]] = {}
    for leaf in leaves:
        if leaf.target is conv.conv2d and (leaf is node or _is_inner(leaf)):
            branches.setdefault(_bound(leaf)["x"], []).append(leaf)
    for source, convolutions in branches.items():
        if len(convolutions) > 1 and _agree(convolutions):
            names = tuple(leaf.name for leaf in convolutions)
            module = meta.provenance(node).name
            yield Branches(node.name, module, source.name, names, source in leaves)


def _agree(convolutions: Sequence[Node]) -> bool:
    """Whether stride, groups and dilation are the same; batch norms fit any."""
    spatial = [c for c in convolutions if not _is_scale(c)]
    settings = {(_bound(c)["stride"], _bound(c)["groups"]) for c in spatial}
    dilations = {_bound(c)["dilation"] for c in spatial if _kernel(c) != (1, 1)}
    return len(settings) == 1 and len(dilations) <= 1


def _is_scale(node: Node) -> bool:
    """A factor for every channel: a batch norm on its own."""
    one = _kernel(node) == _bound(node)["stride"] == (1, 1)
    return one and _bound(node)["groups"] == tuple(node.meta["shape"])[1]


def _kernel(node: Node) -> tuple[int, ...]:
    return tuple(_bound(node)["weight"].meta["shape"])[2:]


def _bound(node: Node) -> dict[str, Any]:
    """Operands and settings of an operator by name."""
    definition = meta.opdef(node)
    assert definition is not None
    return definition.bind(node)
