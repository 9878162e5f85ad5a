"""Indices stored in a file must stay inside the tensors they index: kernels do not check them."""

from __future__ import annotations

from torch.fx import Node

from fxquant.errors import FileFormatError
from fxquant.ir import meta
from fxquant.ops import OPS
from fxquant.ops import pool as pool_ops
from fxquant.ops import shape as shape_ops


def check_indices(node: Node) -> None:
    """Check the static indices of a dialect node against its operand's shape.

    Raises:
        FileFormatError: An index lies outside.
    """
    if node.op != "call_function" or node.target not in OPS:
        return
    source = node.all_input_nodes[0]
    shape = meta.shape_of(source)
    if node.target in (pool_ops.max_pool2d, pool_ops.avg_pool2d):
        for size, key in zip(shape[2:], ("rows", "cols"), strict=True):
            for start, stop, step in node.kwargs[key]:  # type: ignore[union-attr]
                _check(node, 0 <= start < stop <= size and step >= 1)
    elif node.target is shape_ops.gather2d:
        for size, key in zip(shape[2:], ("rows", "cols"), strict=True):
            _check(node, all(0 <= i < size for i in node.kwargs[key]))  # type: ignore
    elif node.target is pool_ops.resize_linear2d:
        for size, key in zip(shape[2:], ("rows", "cols"), strict=True):
            for i0, i1, w in node.kwargs[key]:  # type: ignore[union-attr]
                _check(node, 0 <= i0 < size and 0 <= i1 < size and 0 <= w <= 1)
    elif node.target is shape_ops.slice_axis:
        axis, start, stop, step = (node.kwargs[k] for k in ("axis", "start", "stop", "step"))
        _check(node, 0 <= axis < len(shape) and 0 <= start < stop <= shape[axis] and step >= 1)  # type: ignore


def _check(node: Node, good: bool) -> None:
    if not good:
        raise FileFormatError(f"node {node.name} reads outside of its operand",
                              why="the file is corrupt")
