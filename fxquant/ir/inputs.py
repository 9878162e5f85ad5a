"""What users feed a graph: as many float tensors as it takes, of its shapes, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import FxQuantError
from fxquant.ir import meta


def check_inputs(gm: GraphModule, inputs: Sequence[Any], error: type[FxQuantError]) -> None:
    """Refuse a batch that the graph cannot run.

    Args:
        gm: The graph.
        inputs: What it is called with.
        error: What to raise.
    """
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    if len(inputs) != len(nodes):
        raise error(
            f"{len(inputs)} inputs were given, the model takes {len(nodes)}",
            where=", ".join(n.name for n in nodes),
            remedy="pass one tensor for each input",
        )
    for node, x in zip(nodes, inputs, strict=True):
        if not isinstance(x, Tensor):
            raise error(f"input {node.name} is a {type(x).__name__}", remedy="pass a tensor")
        expected = meta.shape_of(node)
        if x.ndim != len(expected) or tuple(x.shape[1:]) != expected[1:]:
            raise error(
                f"input {node.name} has shape {tuple(x.shape)}",
                why=f"the model was prepared with {expected} (any batch size)",
                remedy="resize the data, or prepare with example inputs of this shape",
            )
        if not x.dtype.is_floating_point:
            raise error(
                f"input {node.name} has dtype {x.dtype}",
                why="it must be a float tensor",
                remedy="convert it with .float() and normalize it as in training",
            )
    sizes = {n.name: len(x) for n, x in zip(nodes, inputs, strict=True)}
    if len(set(sizes.values())) > 1:
        raise error(
            f"the inputs are batches of {', '.join(f'{b} ({name})' for name, b in sizes.items())}",
            remedy="pass as many samples of one input as of the others",
        )
