"""Models that write into their tensors: the graph computes what they do, or they are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.errors import CaptureError
from fxquant.solvers import RoundToNearest
from tests.graphs import normalized
from tests.ir.test_frontend import Function

IMAGE = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(5))

READ_AGAIN: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "module": lambda m, x: torch.cat([y := x * 2, nn.ReLU(inplace=True)(y)], 1),
    "function": lambda m, x: torch.cat([y := x * 2, F.relu(y, inplace=True)], 1),
    "unused": lambda m, x: (y := x * 2, F.relu_(y), y)[2],
    "method": lambda m, x: (y := x * 2, y.clamp_(-0.5, 0.25), y + x)[2],
    "twice": lambda m, x: (y := x * 2, y.add_(1), y.mul_(3), y)[3],
    "view_alone": lambda m, x: (x * 2).view(2, -1).relu_(),
    "beside": lambda m, x: (p := list((x * 2).chunk(2, 1)), p[0].relu_(), p[0] + p[1])[2],
    "foreign": lambda m, x: (y := x * 2, y.masked_fill_(y < 0, 0.5), y + x)[2],
    "foreign_function": lambda m, x: (y := x * 2, F.celu(y, 1.0, True), y + x)[2],
    "input": lambda m, x: F.conv2d(x.sub_(0.3), m.weight) + x.mean(),
}  # fmt: skip


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", READ_AGAIN)
def test_changed_value_is_read_as_changed(name: str, exported: bool) -> None:
    model = Function(READ_AGAIN[name]).eval()
    captured = torch.export.export(model, (IMAGE.clone(),)) if exported else model
    with torch.no_grad():
        expected = model(IMAGE.clone())
    before = IMAGE.clone()
    got = normalized(captured, IMAGE)(IMAGE)
    assert torch.equal(IMAGE, before), "the caller's input was changed"
    torch.testing.assert_close(got, expected)


PART_READ_AGAIN: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "slice": lambda m, x: (y := x * 2, y[:, 0].mul_(3), y)[2],
    "view": lambda m, x: (y := x * 2, y.view(2, -1).relu_(), y)[2],
    "base": lambda m, x: (y := x * 2, v := y[:, :2], y.relu_(), v)[3],
    "filled": lambda m, x: (y := x * 2, y[:, :2].fill_(0), y)[2],
}


@pytest.mark.parametrize("name", PART_READ_AGAIN)
def test_changed_part_of_a_value_is_refused(name: str) -> None:
    with pytest.raises(CaptureError, match=r"changes part of a tensor in place") as caught:
        normalized(Function(PART_READ_AGAIN[name]).eval(), IMAGE)
    assert "test_in_place.py:" in str(caught.value)


def test_changed_buffer_is_refused() -> None:
    model = Function(lambda m, x: x * m.channel.view(-1, 1, 1).mul_(2)).eval()
    with pytest.raises(CaptureError, match="its parameter or buffer channel"):
        normalized(model, IMAGE)


def test_operation_without_another_form_is_refused() -> None:
    model = Function(lambda m, x: (x * 2).set_(x)).eval()
    with pytest.raises(CaptureError, match="no other form"):
        normalized(model, IMAGE)


def test_assigned_slices_are_refused() -> None:
    class Assigning(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, :2] = 0
            return y

    with pytest.raises(CaptureError, match="changes part of a tensor in place"):
        normalized(Assigning().eval(), IMAGE)


def test_calibration_data_stays_as_it_is() -> None:
    model = Function(lambda m, x: F.conv2d(x.sub_(0.3).cosh_(), m.weight)).eval()
    data, example = IMAGE.clone(), IMAGE[:1].clone()
    quantized = fxquant.quantize(model, [data], example, solver=RoundToNearest(), progress=False)
    quantized(data)
    assert torch.equal(data, IMAGE) and torch.equal(example, IMAGE[:1])
