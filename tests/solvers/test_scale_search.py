"""Picking the best candidate, and re-rounding channels whose scale became too fine."""

from __future__ import annotations

import torch
from hypothesis import given

from fxquant.numerics.types import weight_spec
from fxquant.solvers.scale_search import pick, raise_scales, round_to_grid, smallest_scale
from tests.solvers.layers import grid
from tests.strategies import SEED

INF = float("inf")


def table(*rows: tuple[float, ...]) -> torch.Tensor:
    """Costs of one channel, a row a candidate."""
    return torch.tensor(rows, dtype=torch.float64)[:, :, None]


def test_the_least_cost_wins_and_the_first_of_equals() -> None:
    assert pick(table((3,), (1,), (2,))).tolist() == [1]
    assert pick(table((3,), (1,), (1,))).tolist() == [1]
    assert pick(table((1,), (1,), (2,))).tolist() == [0]


def test_the_last_cost_decides_within_the_tolerance() -> None:
    costs = table((1.0, 9), (0.5, 5), (0.55, 4), (0.7, 1))
    assert pick(costs).tolist() == [1]
    assert pick(costs, 0.1).tolist() == [2]
    assert pick(costs, 10).tolist() == [3]


def test_never_worse_than_the_present_candidate() -> None:
    """Although another one is equal within the tolerance and has the better last cost."""
    assert pick(table((0.5, 5), (0.55, 4)), 0.1).tolist() == [0]
    assert pick(table((0.5, 5), (0.5, 4)), 0.1).tolist() == [1]


def test_candidates_without_a_number_lose() -> None:
    assert pick(table((1, 1), (float("nan"), 0), (INF, 0))).tolist() == [0]


@given(seed=SEED)
def test_channels_are_picked_alone(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    costs = torch.rand(6, 2, 9, generator=rng, dtype=torch.float64)
    alone = torch.cat([pick(costs[:, :, [c]], 0.2) for c in range(9)])
    assert torch.equal(pick(costs, 0.2), alone)
    chosen = costs[:, 0].gather(0, alone[None])[0]
    assert bool((chosen <= costs[0, 0]).all())


def test_raised_channels_are_rounded_anew_the_others_stay() -> None:
    weight = torch.randn(4, 3, 2, 2)
    weight[1] *= 1e-4
    spec, bias = weight_spec(4), torch.tensor([0.1, 30.0, 0.0, -2.0])
    scale = torch.tensor([0.3, 1e-5, 0.2, 0.1], dtype=torch.float64)
    start = round_to_grid(weight * 1.7, scale, spec)  # not the nearest codes
    same, raised = raise_scales(start, weight, bias, grid(0.05), grid(0.1))
    assert same is start and raised == 0
    fine = grid(1e-4), grid(0.1)
    legal, raised = raise_scales(start, weight, bias, *fine)
    floor = smallest_scale(bias, *fine).float()
    assert raised == 1 and torch.equal(legal.qparams.scale[1], floor[1])
    keep = [0, 2, 3]
    assert torch.equal(legal.codes[keep], start.codes[keep])
    assert torch.equal(legal.qparams.scale[keep], start.qparams.scale[keep])
    assert torch.equal(legal.codes[1], round_to_grid(weight, floor.double(), spec).codes[1])
    assert raise_scales(legal, weight, bias, *fine)[0] is legal
