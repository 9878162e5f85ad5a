"""Which values of a graph have their samples along the first axis.

Solvers keep values of many samples and take some of them out again; and larger batches run in
slices. Both need values whose rows belong to one sample after the other. Images do; a reshape may
fold other axes in between (then a sample has several rows); attention, whose samples are along the
second axis for a while, does not, nor does what depends on the other samples of its batch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from fxquant.ir import meta
from fxquant.ir.device import device_of

_SAME = 1e-4  # relative: batches of other sizes are summed in another order


def dependents(graph: Graph) -> set[Node]:
    """The inputs and all that is computed from them."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


@torch.no_grad()
def by_sample(gm: GraphModule, probing: bool = False) -> frozenset[str] | None:
    """Names of the values whose rows are those of one sample after the other.

    Their shapes tell, found with meta tensors of twice the batch. Where they leave a doubt the
    float network runs on noise: what it makes of some samples must not depend on their place in the
    batch, nor on the others.

    Args:
        gm: Graph whose values have recorded shapes.
        probing: Also run the network where it holds float operators, which might mix samples.

    Returns:
        None if the graph cannot run at twice its batch.
    """
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    shapes = [(2 * meta.shape_of(n)[0], *meta.shape_of(n)[1:]) for n in inputs]
    run = _Shapes(gm)
    try:
        run.run(*(torch.empty(s, device="meta") for s in shapes))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    values = [n for n in dependents(gm.graph) if n.op != "output" and "shape" in n.meta]
    doubled = [n for n in values if run.doubled(n)]
    calls = [n for n in values if n.op.startswith("call_") and n.target is not operator.getitem]
    foreign = any(meta.opdef(n) is None for n in calls)
    if len(doubled) < len(values) or (probing and foreign):
        first, second = _digests(gm, shapes)
        doubled = [n for n in doubled if _same(first[n][1], second[n][0])]
    return frozenset(n.name for n in doubled)


def sliceable(gm: GraphModule) -> frozenset[str]:
    """Names of the values that can be cut into batches the graph can run."""
    known = by_sample(gm)
    if known is not None:
        return known
    return frozenset(n.name for n in dependents(gm.graph) if n.meta.get("shape"))


class _Shapes(Interpreter):
    """Runs on meta tensors and keeps the shapes of all values."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().get_attr(target, args, kwargs).to("meta")

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value

    def doubled(self, n: Node) -> bool:
        """Whether just the first axis became twice as long."""
        old, new = meta.shape_of(n), self.shapes.get(n, ())
        return bool(old) and new == (2 * old[0], *old[1:])


class _Digests(Interpreter):
    """Runs and keeps a digest of the first and the second half of every value.

    Two projections on vectors without a pattern, and the norm.
    """

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.ndim and value.shape[0] % 2 == 0:
            value = torch.view_as_real(value) if value.is_complex() else value
            halves = value.reshape(2, -1).double()
            angles = torch.arange(halves.shape[1], dtype=halves.dtype).to(halves.device)
            sums = [(halves * torch.sin(angles * k)).sum(1) for k in (1, 2)]
            self.found[n] = torch.stack([*sums, halves.norm(dim=1)], 1)
        return value


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two digests are of the same values."""
    return a.allclose(b, 0, _SAME * float(b[-1].nan_to_num()), equal_nan=True)


def _digests(
    gm: GraphModule, shapes: Sequence[tuple[int, ...]]
) -> tuple[dict[Node, Tensor], dict[Node, Tensor]]:
    """Of two runs; the second half of the first batch is the first half of the second one."""
    rng, device = torch.Generator().manual_seed(0), device_of(gm)
    noise = [torch.randn((2, *shape), generator=rng).flatten(0, 1).to(device) for shape in shapes]
    first, second = _Digests(gm), _Digests(gm)
    first.run(*(x[: len(x) // 2] for x in noise))
    second.run(*(x[len(x) // 4 : len(x) * 3 // 4] for x in noise))
    return first.found, second.found
