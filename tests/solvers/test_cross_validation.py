"""The damping of least-squares solvers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxquant.ops.conv import linear
from fxquant.solvers import GPTQ, BitSplit, CoordinateDescent
from fxquant.solvers.base import LayerProblem
from fxquant.solvers.cross_validation import DAMPINGS, choose_damping
from fxquant.solvers.layer_matrix import LayerMatrix, layer_matrices, merged
from fxquant.solvers.least_squares import LeastSquaresSolver
from tests.solvers.layers import GEOMETRIES, make_layer, make_problem
from tests.solvers.matrices import layer_matrix
from tests.tolerance import assert_close


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def classifier(samples: int, noise: float) -> LayerProblem:
    """A linear layer whose quantized input is the float one and noise that is not in it."""
    x = torch.randn(samples, 48, generator=rng())
    x_q = x + noise * torch.randn(samples, 48, generator=rng().manual_seed(1))
    layer = make_layer(linear, torch.randn(6, 48, generator=rng().manual_seed(2)))
    return LayerProblem(layer, [(x,)], [(x_q,)])


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("folds", [2, 3])
def test_parts_make_the_whole(name: str, folds: int) -> None:
    problem = make_problem(name)
    whole = layer_matrix(problem, rng(), 10**6)
    parts = layer_matrices(problem, rng(), 10**6, folds)
    total = merged(parts)
    assert len(parts) == folds and total.rows == whole.rows
    for one, other in zip(
        (total.gram, total.cross, total.energy, *total.means),
        (whole.gram, whole.cross, whole.energy, *whole.means),
        strict=True,
    ):
        assert_close(one, other, 1e-5)


def test_parts_are_whole_samples() -> None:
    x = torch.zeros(5, 3, 2)
    x[1::2] = torch.randn(2, 3, 2, generator=rng())
    problem = LayerProblem(make_layer(linear, torch.ones(1, 2)), [(x[:3],), (x[3:],)],
                           [(x[:3],), (x[3:],)])  # fmt: skip
    even, odd = layer_matrices(problem, rng(), 100, 2)
    assert (even.rows, odd.rows) == (9, 6)
    assert not bool(even.gram.any()) and bool(odd.gram.any())


def float_target(damped: LayerMatrix) -> Tensor:
    return torch.linalg.solve(damped.gram, damped.cross)


def test_few_samples_are_trusted_less() -> None:
    few, many = (
        choose_damping(layer_matrices(classifier(n, 0.3), rng(), 10**6, 2), float_target)
        for n in (60, 20_000)
    )
    assert many < 0.1 < few


def test_one_sample_cannot_judge_itself() -> None:
    assert (
        choose_damping(layer_matrices(classifier(1, 0.3), rng(), 9, 2), float_target)
        == (DAMPINGS[-1])
    )


@pytest.mark.parametrize("kind", [GPTQ, BitSplit, CoordinateDescent])
def test_codes_hold_beyond_the_samples(kind: type[LeastSquaresSolver]) -> None:
    seen, unseen = classifier(64, 0.5), classifier(4000, 0.5)
    fresh = layer_matrix(unseen, rng(), 10**6)

    def loss(solver: LeastSquaresSolver) -> float:
        weight = solver.solve_layer(seen, rng()).weight.dequantize()
        return float(fresh.loss(weight.double().T[None]).sum())

    assert loss(kind()) < 0.8 * loss(kind(damping=DAMPINGS[0]))
