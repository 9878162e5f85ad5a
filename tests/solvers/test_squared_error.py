"""Mean squared error whose gradient lies in memory as the value does."""

from __future__ import annotations

import pytest
import torch

from fxquant.solvers.squared_error import dot, mean_squared_error

ORDERS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("other", ORDERS)
def test_value_and_gradient_are_those_of_torch(
    order: torch.memory_format, other: torch.memory_format
) -> None:
    value = torch.randn(3, 4, 5, 6).contiguous(memory_format=order).requires_grad_()
    target = torch.randn(3, 4, 5, 6).contiguous(memory_format=other)
    expected = torch.nn.functional.mse_loss(value, target)
    (of_torch,) = torch.autograd.grad(3 * expected, value)
    ours = mean_squared_error(value, target)
    (gradient,) = torch.autograd.grad(3 * ours, value)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, of_torch)
    assert gradient.stride() == value.stride()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("part", [slice(None), slice(1, 4)])
def test_dot_pairs_elements_however_they_lie(order: torch.memory_format, part: slice) -> None:
    a = torch.randn(3, 4, 5, 6)[:, part]
    b = torch.randn(3, 4, 5, 6).contiguous(memory_format=order)[:, part]
    torch.testing.assert_close(dot(a, b), (a * b).sum())
