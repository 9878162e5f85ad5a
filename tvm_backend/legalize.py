"""Can every node be compiled? If not, one error that lists all that cannot, with reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.errors import UnsupportedError
from fxquant.numerics import reference
from tvm_backend.emit.table import ACCUMULATES, KERNELS
from tvm_backend.graph_view import dtype_of
from tvm_backend.islands import IslandNodes

VALUE_DTYPES = (torch.uint8, torch.uint16, torch.int32, torch.float32)
INPUT_DTYPES = (*VALUE_DTYPES, torch.int64)
_RANK_4 = (
    reference.avg_pool2d, reference.avg_pool2d_accumulate, reference.conv2d,
    reference.conv2d_accumulate, reference.conv_transpose2d,
    reference.conv_transpose2d_accumulate, reference.local_response_norm, reference.max_pool2d,
    reference.resize_linear2d,
)  # fmt: skip


def legalize(
    graph_module: GraphModule, islands: Sequence[IslandNodes], constants: Mapping[Node, Tensor]
) -> None:
    """Check a graph.

    Raises:
        UnsupportedError: Some nodes cannot be compiled.
    """
    inside = {node for island in islands for node in island.nodes}
    refused: list[str] = []
    for node in graph_module.graph.nodes:
        if node.op == "output" or node in constants or node in inside:
            continue
        reason = _placeholder(node) if node.op == "placeholder" else _operator(node)
        if reason:
            refused.append(f"{node.name} ({_target_name(node)}): {reason}")
    for island in islands:
        refused += _island(island)
    if refused:
        raise UnsupportedError(
            f"{len(refused)} node(s) cannot be compiled",
            where="\n    ".join(refused),
            remedy="see the reason given for each node",
        )


def _target_name(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _placeholder(node: Node) -> str:
    if dtype_of(node) not in INPUT_DTYPES:
        return f"inputs of type {dtype_of(node)} are not supported"
    return _shape(node)


def _shape(node: Node) -> str:
    if "shape" not in node.meta:
        return "its shape is unknown"
    return "" if math.prod(node.meta["shape"]) > 0 else "it has no elements"


def _operator(node: Node) -> str:
    if node.target not in KERNELS:
        return "no kernel exists for this operator"
    dtypes = (*VALUE_DTYPES, torch.int64) if node.target in ACCUMULATES else VALUE_DTYPES
    if dtype_of(node) not in dtypes:
        return f"values of type {dtype_of(node)} are not supported"
    if node.target in _RANK_4 and len(node.meta["shape"]) != 4:
        return "it needs a batch axis: a tensor of rank 4"
    return _shape(node)


def _island(island: IslandNodes) -> list[str]:
    refused = [
        f"{node.name}: a float operator reads integer codes without dequantize"
        for node in island.inputs
        if node.op != "placeholder" and dtype_of(node) != torch.float32
    ]
    refused += [
        f"{node.name} ({_target_name(node)}): a float operator outside of the integer graph "
        f"must deliver float32, it delivers {dtype_of(node)}"
        for node in island.outputs
        if not _may_leave(node)
    ]
    return refused


def _may_leave(node: Node) -> bool:
    """Floats leave an island; labels do as results of the network, which no kernel reads."""
    if dtype_of(node) == torch.int64:
        return all(user.op == "output" for user in node.users)
    return dtype_of(node) == torch.float32
