"""GPTQ against its definition: round a weight, then solve for all that are left."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fxquant.errors import ConfigError, NumericsError
from fxquant.solvers import GPTQ
from fxquant.solvers.layer_matrix import LayerMatrix
from fxquant.solvers.least_squares import GridPoint
from tests.solvers.matrices import random_matrix, rounded
from tests.tolerance import assert_close


def conditional_rounding(matrix: LayerMatrix, scale: Tensor, limit: int, act_order: bool) -> Tensor:
    """Codes, `[G, N, M]`: after every rounding the free weights are solved for anew."""
    codes = torch.empty_like(matrix.weight)
    for g in range(len(matrix.gram)):
        hessian = matrix.gram[g]
        best = torch.linalg.solve(hessian, matrix.cross[g])  # [N, M]
        order = list(range(len(hessian)))
        if act_order:
            order.sort(key=lambda n: -float(hessian[n, n]))
        weight = best.clone()
        for i, n in enumerate(order):
            codes[g, n] = torch.round(weight[n] / scale[g]).clamp(-limit, limit)
            weight[n] = codes[g, n] * scale[g]
            done, free = order[: i + 1], order[i + 1 :]
            if free:
                shift = hessian[free][:, done] @ (weight - best)[done]
                weight[free] = best[free] - torch.linalg.solve(hessian[free][:, free], shift)
    return codes


def first_pass(matrix: LayerMatrix, act_order: bool = True, limit: int = 3) -> GridPoint:
    """One pass from codes that are worse than any."""
    point = GridPoint(torch.full_like(matrix.weight, limit), rounded(matrix, limit).scale)
    GPTQ(passes=1, starts=(1.0,), act_order=act_order, polish=0).optimize(matrix, point, limit)
    return point


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("inputs", "groups"), [(5, 3), (70, 1), (64, 1)])
def test_codes_are_those_of_the_definition(inputs: int, groups: int, act_order: bool) -> None:
    """Also over several blocks of columns."""
    matrix = random_matrix(inputs, 3, groups)
    scale = rounded(matrix, 3).scale
    expected = conditional_rounding(matrix, scale, 3, act_order)
    assert torch.equal(first_pass(matrix, act_order).codes, expected)
    assert act_order or not torch.equal(
        expected, conditional_rounding(matrix, scale, 3, act_order=True)
    )


def test_uncorrelated_inputs_round_the_minimizer() -> None:
    matrix = random_matrix(9, 4)
    gram = torch.diag_embed(matrix.diagonal)
    matrix = replace(matrix, gram=gram)
    best = torch.linalg.solve(gram, matrix.cross)  # absorbs what the prefix did to the target
    scale = rounded(matrix, 7).scale
    expected = torch.round(best / scale[:, None]).clamp(-7, 7)
    assert torch.equal(first_pass(matrix, limit=7).codes, expected)
    assert not torch.equal(expected, rounded(matrix, 7).codes)


def test_every_pass_is_kept_only_where_it_is_better() -> None:
    matrix = random_matrix(20, 6)
    losses: list[Tensor] = []
    for passes in (1, 2, 4):
        point = rounded(matrix, 3)
        history = GPTQ(passes=passes, starts=(1.0,), polish=0).optimize(matrix, point, 3)
        losses.append(matrix.loss(point.weight))
        assert len(history) == passes + 1
        assert history[-1] == pytest.approx(float(losses[-1].sum() / matrix.energy.sum()))
    assert bool((losses[1] <= losses[0]).all() and (losses[2] <= losses[1]).all())
    assert float(losses[2].sum()) < float(losses[0].sum())


def test_polish_lowers_the_objective_further() -> None:
    matrix = random_matrix(20, 6)
    plain, polished = (rounded(matrix, 1) for _ in range(2))
    GPTQ(polish=0).optimize(matrix, plain, 1)
    history = GPTQ(polish=20).optimize(matrix, polished, 1)
    assert_close(torch.tensor(history).diff().clamp(min=0), torch.zeros(len(history) - 1))
    assert float(matrix.loss(polished.weight).sum()) < float(matrix.loss(plain.weight).sum())


def test_narrow_weights_start_from_several_scales() -> None:
    matrix = random_matrix(20, 6)

    def solved(limit: int, *starts: float) -> tuple[Tensor, int]:
        point = rounded(matrix, limit)
        history = GPTQ(starts=starts, polish=0).optimize(matrix, point, limit)
        return matrix.loss(point.weight), len(history)

    (one, _), (three, tried) = solved(3, 1.0), solved(3, 1.0, 0.7, 1.3)
    assert tried == 1 + 3 * GPTQ().passes
    assert bool((three <= one).all())
    assert float(three.sum()) < float(one.sum())
    assert solved(127, 1.0, 0.7, 1.3)[1] == 1 + GPTQ().passes


def test_compensation_beats_rounding() -> None:
    matrix = random_matrix(40, 8)
    point = rounded(matrix, 7)
    before = matrix.loss(point.weight)
    GPTQ(passes=1, starts=(1.0,), polish=0).optimize(matrix, point, 7)
    assert float(matrix.loss(point.weight).sum()) < 0.7 * float(before.sum())


def test_invalid_fields() -> None:
    for field, wrong in (("damping", 0.0), ("passes", 0), ("starts", ()), ("starts", (0.0,))):
        with pytest.raises(ConfigError, match=field):
            replace(GPTQ(), **{field: wrong})
    with pytest.raises(ConfigError, match="rows"):
        GPTQ(rows=0)


def test_a_matrix_without_factor_is_refused() -> None:
    matrix = random_matrix(5, 2)
    with pytest.raises(NumericsError, match="not positive definite"):
        GPTQ().optimize(replace(matrix, gram=-matrix.gram), rounded(matrix, 7), 7)
