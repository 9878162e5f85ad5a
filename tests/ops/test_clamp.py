"""Clamps in place: values, gradients, memory order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxquant.ops.clamp import Clamp, apply_clamp

CLAMPS = [(0.0, None), (0.0, 6.0), (None, 1.0), (-1.5, 2.0), (None, None), None]


@pytest.mark.parametrize("clamp", CLAMPS)
def test_values_and_gradients_are_those_of_clamp(clamp: Clamp | None) -> None:
    start = torch.randn(2, 8, 5, 5).mul_(3)
    start[0, 0, 0] = torch.tensor([0.0, 6.0, 1.0, -1.5, 2.0])  # on the bounds
    start = start.contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn_like(start)
    low, high = clamp or (None, None)
    low, high = -torch.inf if low is None else low, torch.inf if high is None else high
    expected = F.hardtanh(start, low, high)
    (of_torch,) = torch.autograd.grad((expected * weights).sum(), start)
    result = apply_clamp(start + 0, clamp)
    (ours,) = torch.autograd.grad((result * weights).sum(), start)
    assert torch.equal(result, expected)
    assert torch.equal(ours, of_torch)
    assert ours.stride() == start.stride()
    assert torch.equal(apply_clamp(start.detach().clone(), clamp), expected)


def test_nothing_is_copied() -> None:
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    y = x * 2
    assert apply_clamp(y, (0.0, 6.0)).data_ptr() == y.data_ptr()
