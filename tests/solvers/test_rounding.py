"""Roundings: their start, their limits and their gradients."""

from __future__ import annotations

import pytest
import torch

from fxquant.numerics.types import IntType
from fxquant.solvers.adaround import Rectified
from fxquant.solvers.attention_round import Attention, code_probability
from fxquant.solvers.fake_quantize import fake_quantize
from fxquant.solvers.rounding import Rounding, StraightThrough

S4 = IntType(4, signed=True, narrow=True)
RNG = torch.Generator()
RATIO = torch.linspace(-9.3, 9.3, 400)


def codes(ratio: torch.Tensor) -> torch.Tensor:
    return ratio.round().clamp(S4.qmin, S4.qmax)


@pytest.mark.parametrize("rounding", [StraightThrough(), Attention(), Rectified()], ids=repr)
def test_starts_at_round_to_nearest(rounding: Rounding) -> None:
    variable = rounding.start(RATIO, codes(RATIO), S4, RNG)
    assert torch.equal(rounding.hard(RATIO, variable, S4), codes(RATIO))


@pytest.mark.parametrize("rounding", [StraightThrough(), Attention()], ids=repr)
def test_starts_at_any_given_codes(rounding: Rounding) -> None:
    wanted = (codes(RATIO) + 2).clamp(S4.qmin, S4.qmax)
    variable = rounding.start(RATIO, wanted, S4, RNG)
    assert torch.equal(rounding.hard(RATIO, variable, S4), wanted)


@pytest.mark.parametrize("rounding", [StraightThrough(), Attention(), Rectified()], ids=repr)
def test_codes_stay_in_the_symmetric_range(rounding: Rounding) -> None:
    variable = 30 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    hard = rounding.hard(RATIO, variable, S4)
    assert torch.equal(hard, hard.round())
    assert int(hard.min()) >= -7 and int(hard.max()) <= 7


def test_probabilities_sum_to_one_and_decay_with_the_distance() -> None:
    ratio = torch.tensor([0.0, 0.3, -2.2, 6.9, 12.0])
    table = torch.stack([code_probability(ratio, k, 0.5, S4) for k in range(-7, 8)])
    assert torch.allclose(table.sum(0), torch.ones(5), atol=1e-6)
    assert float(table[7, 0]) == pytest.approx(0.6827, abs=1e-3)
    assert float(table[8, 0]) == pytest.approx(0.1573, abs=1e-3)
    assert bool((table > 0)[:, 0].any())
    sharp = torch.stack([code_probability(ratio, k, 1e-4, S4) for k in range(-7, 8)])
    assert torch.equal(sharp.argmax(0) - 7, codes(ratio).long())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_attention_damps_moves_away_and_lets_moves_back_pass(sign: float) -> None:
    alpha = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)  # two tau below, at, above
    loss = sign * Attention(tau=0.5).codes(torch.zeros(3), alpha, S4).sum()
    (gradient,) = torch.autograd.grad(loss, alpha)
    away, home = 0.02275, 0.97725
    rises = sign < 0  # descent moves alpha against the gradient
    below, at, above = gradient.abs().tolist()
    assert below == pytest.approx(home if rises else away, abs=1e-3)
    assert at == pytest.approx(0.5)
    assert above == pytest.approx(away if rises else home, abs=1e-3)


def test_attention_does_not_move_clipped_weights() -> None:
    alpha = torch.zeros(2, requires_grad=True)
    Attention().codes(torch.tensor([20.0, -20.0]), alpha, S4).sum().backward()
    assert alpha.grad is not None and torch.equal(alpha.grad, torch.zeros(2))


def test_penalty_pushes_towards_a_decision() -> None:
    rounding = Rectified()
    assert rounding.penalty(torch.zeros(3), 0.1) is None
    open_, decided = (rounding.penalty(torch.full((3,), v), 0.9) for v in (0.0, 10.0))
    assert open_ is not None and decided is not None
    assert float(open_) == pytest.approx(1.0) and float(decided) == pytest.approx(0.0, abs=1e-6)


def test_gradients_of_the_learned_step() -> None:
    """LSQ eq. 3 and 5: round(r) - r inside the range, the bound outside."""
    x = torch.tensor([0.12, 0.49, -3.0, 7.9], requires_grad=True)
    scale = torch.tensor(0.2, requires_grad=True)
    y = fake_quantize(x, scale, -8, 15)
    assert torch.allclose(y, torch.tensor([0.2, 0.4, -1.6, 3.0]))
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    expected = (1 - 0.6) + (2 - 2.45) - 8 + 15
    assert scale.grad is not None and float(scale.grad) == pytest.approx(expected, abs=1e-5)
