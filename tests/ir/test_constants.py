"""What is computed from parameters alone is a tensor of the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.graphs import check_same_floats, normalized, ops_of
from tests.ir.test_frontend import IMAGE, Function


def test_constants_are_computed_once() -> None:
    """Of what does not depend on inputs the graph has the result; nothing else is kept of it."""

    def with_grid(m: Function, x: Tensor) -> Tensor:
        rows, cols = torch.meshgrid(torch.arange(9), torch.arange(x.shape[3]), indexing="ij")
        return x + torch.stack([rows, cols], -1).float().sum(-1) * m.channel[0]

    gm = normalized(Function(with_grid).eval(), IMAGE)
    assert ops_of(gm) == ["add"]
    assert [tuple(t.shape) for t in (*gm.parameters(), *gm.buffers())] == [(9, 7)]


def test_random_numbers_are_no_constant() -> None:
    gm = normalized(Function(lambda m, x: x + torch.rand(x.shape[3])).eval(), IMAGE)
    assert ops_of(gm) == ["rand", "add"]


def test_a_constant_changed_in_place_is_the_changed_one() -> None:
    def changed(m: Function, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[1])
        before = total + 1
        total.add_(m.channel)
        return x.abs() * (total * before).view(4, 1, 1)

    model = Function(changed).eval()
    gm = normalized(model, IMAGE)
    assert ops_of(gm) == ["abs", "batch_norm"]
    check_same_floats(gm, model, [IMAGE])
