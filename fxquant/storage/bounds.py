"""Indices stored in a file must stay inside the tensors they index: kernels do not check them."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fxquant.errors import FileFormatError
from fxquant.ir import meta
from fxquant.ops import pool as pool_ops
from fxquant.ops import shape as shape_ops


def check_indices(node: Node) -> None:
    """Check the static indices of a dialect node against its operand's shape.

    Raises:
        FileFormatError: An index lies outside.
    """
    if meta.opdef(node) is None:
        return
    shape = meta.shape_of(node.all_input_nodes[0])
    plane = [
        (size, node.kwargs.get(k)) for size, k in zip(shape[2:], ("rows", "cols"), strict=False)
    ]
    table: Any
    if node.target in (pool_ops.max_pool2d, pool_ops.avg_pool2d):
        for size, table in plane:
            _check(node, all(0 <= i < j <= size and step >= 1 for i, j, step in table))
    elif node.target is shape_ops.gather2d:
        for size, table in plane:
            _check(node, all(0 <= i < size for i in table))
    elif node.target is pool_ops.resize_linear2d:
        for size, table in plane:
            _check(
                node, all(min(i, j) >= 0 and max(i, j) < size and 0 <= w <= 1 for i, j, w in table)
            )
    elif node.target is shape_ops.slice_axis:
        axis, start, stop, step = (
            meta.static(node, name) for name in ("axis", "start", "stop", "step")
        )
        _check(node, 0 <= axis < len(shape) and 0 <= start < stop <= shape[axis] and step >= 1)


def _check(node: Node, good: bool) -> None:
    if not good:
        raise FileFormatError(
            f"node {node.name} reads outside of its operand", why="the file is corrupt"
        )
