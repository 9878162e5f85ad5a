"""The largest code of a value follows from the grids of the graph."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from fxquant.numerics import reference as R
from tvm_backend.code_range import largest_code


def _quantized(graph: Graph, qmax: int) -> Node:
    arguments = {"scale": 0.1, "zero_point": 3, "qmin": 0, "qmax": qmax}
    return graph.call_function(R.quantize, (graph.placeholder("x"),), arguments)


def test_grid_bounds_codes_through_moves() -> None:
    graph = Graph()
    node = _quantized(graph, 127)
    assert largest_code(node, {}) == 127
    shuffled = graph.call_function(R.channel_shuffle, (node,), {"groups": 2})
    pooled = graph.call_function(
        R.max_pool2d, (shuffled,), {"rows": ((0, 2, 1),), "cols": ((0, 2, 1),)}
    )
    assert largest_code(pooled, {}) == 127
    padded = graph.call_function(R.pad, (pooled,), {"pads": ((0, 0),), "value": 200})
    assert largest_code(padded, {}) == 200


def test_tables_bound_their_results() -> None:
    graph = Graph()
    node, table = _quantized(graph, 255), graph.get_attr("table")
    looked_up = graph.call_function(R.lookup, (node, table), {})
    assert largest_code(looked_up, {table: torch.full((256,), 99, dtype=torch.uint8)}) == 99


def test_network_inputs_are_not_trusted() -> None:
    assert largest_code(Graph().placeholder("x"), {}) == 255
