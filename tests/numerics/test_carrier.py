"""Sums of products in float32: used where exact, left where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxquant.numerics import reference
from fxquant.numerics.reference.carrier import carrier

WINDOW = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}


def by_integers(x: Tensor, weight: Tensor, zero_point: int) -> Tensor:
    """A linear layer in int64, without a matrix kernel."""
    return ((x.long() - zero_point)[:, None, :] * weight.long()[None]).sum(-1)


@pytest.mark.parametrize("inputs", [1, 7, 500, 518, 519, 4000])
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_extreme_codes_are_summed_exactly(inputs: int, zero_point: int) -> None:
    """All codes at their ends: 518 products of 255 * 127 stay below 2^24, 519 do not."""
    rng = torch.Generator().manual_seed(inputs)
    x = torch.randint(0, 2, (40, inputs), generator=rng).to(torch.uint8) * 255
    weight = (torch.randint(0, 2, (3, inputs), generator=rng) * 254 - 127).to(torch.int8)
    x[0], weight[0] = 255 - int(zero_point > 127) * 255, 127
    actual = reference.linear_accumulate(
        x, weight, torch.zeros(3, dtype=torch.int32), input_zero_point=zero_point
    )
    assert torch.equal(actual.long(), by_integers(x, weight, zero_point))


def test_the_bound_decides() -> None:
    weight = torch.full((2, 512), 127, dtype=torch.int8)
    assert carrier(torch.tensor([129]), weight[:, :1]) is torch.float32
    assert carrier(torch.tensor([-258, 1]), weight) is torch.float32
    assert carrier(torch.tensor([-259, 1]), weight) is torch.float64
    assert carrier(torch.zeros(0, dtype=torch.int32), weight) is torch.float64
    assert carrier(torch.zeros(3, dtype=torch.int32, device="meta"), weight) is torch.float64


def test_float32_would_be_wrong_beyond_the_bound() -> None:
    """The test above could not fail if float32 held these sums."""
    x, weight = torch.full((1, 4001), 255), torch.full((1, 4001), 127)
    assert int(x.float() @ weight.float().T) != 255 * 127 * 4001


@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("batch", [1, 17])
def test_convolutions_are_the_same_in_both_types(
    groups: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(groups)
    x = torch.randint(0, 256, (batch, 16, 9, 8), generator=rng).to(torch.uint8)
    weight = torch.randint(-127, 128, (16, 16 // groups, 3, 3), generator=rng).to(torch.int8)
    bias = torch.randint(-(1 << 20), 1 << 20, (16,), generator=rng).to(torch.int32)
    arguments = {**WINDOW, "groups": groups, "input_zero_point": 3}
    actual = reference.conv2d_accumulate(x, weight, bias, **arguments)
    monkeypatch.setattr(reference.conv, "carrier", lambda *_: torch.float64)
    assert torch.equal(actual, reference.conv2d_accumulate(x, weight, bias, **arguments))


def test_shortened_products_are_not_trusted() -> None:
    """A user may let oneDNN compute float32 products in bfloat16."""
    codes, weight = torch.tensor([1]), torch.ones(1, 1, dtype=torch.int8)
    assert carrier(codes, weight) is torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert carrier(codes, weight) is torch.float64
    finally:
        torch.set_float32_matmul_precision(before)
    assert carrier(codes, weight) is torch.float32
