"""Storage assignment: how every value of the graph lies in memory.

Codes and accumulators of rank 2, 3 and 4 are images, everything else is flat. A value's halo is
the largest padding any convolution reads it with; it holds the zero point these expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.errors import StageError
from fxquant.numerics import reference
from fxquant.targets import Target
from tvm_backend.call import Value
from tvm_backend.code_range import largest_code
from tvm_backend.emit.table import ACCUMULATES
from tvm_backend.graph_view import bind, dtype_of, shape_of
from tvm_backend.layout import (
    CHANNEL_MULTIPLE,
    INPUT_CHANNEL_MULTIPLE,
    NO_HALO,
    Flat,
    Halo,
    Storage,
    code_offset,
    image,
)

_CONVOLUTIONS = (reference.conv2d, reference.conv2d_accumulate)
_NAMES = {
    torch.float32: "float32",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.uint16: "uint16",
}


def flat(node: Node) -> Value:
    """The node's value as the outside sees it: row-major, plain codes."""
    dtype = dtype_of(node)
    assert dtype is not None
    return Value(node.name, shape_of(node), Flat(shape_of(node), _NAMES[dtype]))


def assign(
    nodes: Iterable[Node], constants: Mapping[Node, Tensor], target: Target
) -> dict[Node, Value]:
    """The value of every node (codes and accumulators in the target's storage).

    Args:
        nodes: Nodes that make values.
        constants: Nodes that do not depend on the input.
        target: The device.
    """
    return {node: _value(node, constants, target) for node in nodes}


def _value(node: Node, constants: Mapping[Node, Tensor], target: Target) -> Value:
    shape, dtype = shape_of(node), dtype_of(node)
    types = {torch.uint8: target.mac.storage, torch.uint16: "int16", torch.int32: "int32"}
    if node.target in ACCUMULATES:
        types[torch.int64] = "int64"
    if dtype is None or dtype not in types:
        return flat(node)
    stored = types[dtype]
    halo, zero_point = _halo(node)
    multiple = CHANNEL_MULTIPLE
    if node.target == reference.quantize and _reads_input(node, constants):
        multiple = INPUT_CHANNEL_MULTIPLE
    storage: Storage
    storage = image(shape, stored, halo, multiple) if 2 <= len(shape) <= 4 else Flat(shape, stored)
    fill = None if zero_point is None else zero_point + code_offset(stored)
    largest = max(largest_code(node, constants), zero_point or 0) if dtype == torch.uint8 else 255
    return Value(node.name, shape, storage, fill, largest)


def _reads_input(node: Node, constants: Mapping[Node, Tensor]) -> bool:
    source = bind(node)["x"]
    return source.op == "placeholder" or source in constants


def _halo(node: Node) -> tuple[Halo, int | None]:
    """The halo a node's readers need, and its content."""
    halo, zero_point = NO_HALO, None
    for user in node.users:
        if user.target not in _CONVOLUTIONS:
            continue
        arguments = bind(user)
        if arguments["x"] is not node or not any(p > 0 for p in arguments["padding"]):
            continue
        halo = tuple(max(h, p) for h, p in zip(halo, arguments["padding"], strict=True))
        zero_point = _agree(node, zero_point, arguments)
    return halo, zero_point  # type: ignore[return-value]


def _agree(node: Node, zero_point: int | None, arguments: Mapping[str, Any]) -> int:
    expected = arguments["input_zero_point"]
    if zero_point not in (None, expected):
        raise StageError(
            f"readers of {node.name} disagree about its zero point: {zero_point}, {expected}",
            why="a value has one quantization",
            remedy="insert a requantize node",
        )
    return expected
