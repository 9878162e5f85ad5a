"""What the layers of a lowered network cost: multiply-accumulates and bytes, by arithmetic."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import GraphModule, Node

from fxquant.numerics import reference
from tvm_backend.graph_view import bind, shape_of, tensor_of
from tvm_backend.kernel import Kernel
from tvm_backend.program import Program, Step

_WEIGHTED = (
    reference.conv2d,
    reference.conv2d_accumulate,
    reference.linear,
    reference.linear_accumulate,
)
_TRANSPOSED = (reference.conv_transpose2d, reference.conv_transpose2d_accumulate)


def node_macs(graph_module: GraphModule) -> dict[str, int]:
    """Multiply-accumulates of every convolution and linear layer of an INTEGER graph, by node.

    Padding counts as if it were multiplied, as is usual.
    """
    found = {}
    for node in graph_module.graph.nodes:
        if node.target not in (*_WEIGHTED, *_TRANSPOSED):
            continue
        bound = bind(node)
        source, weight = bound["x"], bound["weight"]
        assert isinstance(source, Node) and isinstance(weight, Node)
        codes = tensor_of(graph_module, weight)
        if node.target in _TRANSPOSED:  # every input meets the weights of its channel
            found[node.name] = math.prod(shape_of(source)) * codes.numel() // shape_of(source)[1]
        else:
            found[node.name] = math.prod(shape_of(node)) * codes[0].numel()
    return found


def step_macs(program: Program, macs: dict[str, int]) -> list[int]:
    """Multiply-accumulates of every step: those of a node are in the kernel with its weights."""
    return [
        macs[step.node] if isinstance(step, Step) and step.weights else 0 for step in program.steps
    ]


def kernel_bytes(kernel: Kernel) -> int:
    """Bytes a kernel must move at least: every operand and constant read, the result written."""
    storages = (*kernel.inputs, kernel.output)
    values = sum(s.size * np.dtype(s.dtype).itemsize for s in storages)
    return values + sum(a.nbytes for a in kernel.constants)
