"""How many samples run at once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import Graph, Node

from fxquant.ir.batch import bytes_per_sample, samples_at_once


def node_of(*shape: int) -> Node:
    node = Graph().placeholder("x")
    node.meta["shape"] = torch.Size(shape)
    return node


@given(st.integers(1, 7), st.lists(st.integers(1, 300), min_size=1, max_size=3))
def test_size_of_a_sample_does_not_depend_on_the_batch(batch: int, rest: list[int]) -> None:
    assert bytes_per_sample(node_of(batch, *rest)) == bytes_per_sample(node_of(1, *rest))
    assert bytes_per_sample(node_of(1, *rest)) == 4 * torch.Size(rest).numel()


def test_large_values_run_alone_and_small_ones_together() -> None:
    large, small = node_of(1, 64, 512, 512), node_of(1, 16, 8, 8)
    assert samples_at_once([small, large]) == 1
    assert samples_at_once([node_of(1, 96, 56, 56)]) == 6
    assert samples_at_once([small]) == 64
    assert samples_at_once([]) == 64


def test_a_node_without_a_shape_counts_as_small() -> None:
    assert bytes_per_sample(Graph().placeholder("x")) == 4
