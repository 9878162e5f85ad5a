"""Bit-Split, coordinate descent, and the frame they share."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from torch import Tensor

import fxquant
from fxquant.errors import ConfigError
from fxquant.solvers import GPTQ, BitSplit, CoordinateDescent, LayerProblem, RoundToNearest
from fxquant.solvers.bit_split import fit_weights, place_values, split, split_weights, stitch
from fxquant.solvers.coordinate_descent import refit_scale, sweep
from fxquant.solvers.layer_matrix import to_columns
from fxquant.solvers.least_squares import GridPoint, LeastSquaresSolver, grid_point
from tests.solvers.layers import GEOMETRIES, make_problem
from tests.solvers.matrices import layer_matrix, random_matrix, rounded
from tests.strategies import BITS, SEED
from tests.tolerance import assert_close
from tests.zoo import BY_NAME

SOLVERS = [
    BitSplit(damping=0.1),
    CoordinateDescent(damping=0.1),
    GPTQ(damping=0.1),
    GPTQ(damping=0.1, polish=0),
]
CASES = [(name, 4) for name in GEOMETRIES] + [("plain", 2), ("depthwise", 2), ("linear", 8)]
X = torch.randn(20, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def own_loss(solver: LeastSquaresSolver, problem: LayerProblem, weight: Tensor) -> Tensor:
    """The solver's objective of some weights, per output."""
    assert solver.damping is not None
    matrix = layer_matrix(problem, rng(), solver.rows).damped(solver.damping)
    return matrix.loss(to_columns(weight, problem.layer.groups))


@given(bits=BITS, seed=SEED)
def test_digits_stitch_to_the_codes(bits: int, seed: int) -> None:
    limit = (1 << (bits - 1)) - 1
    codes = torch.randint(
        -limit, limit + 1, (2, 5, 3), generator=torch.Generator().manual_seed(seed)
    )
    digits = split(codes.double(), limit)
    assert len(digits) == bits - 1 and place_values(digits)[0] == 2 ** (bits - 2)
    assert torch.equal(stitch(digits), codes.double())
    assert bool(((digits.sign() == codes.sign()) | (digits == 0)).all())
    extreme = torch.full((2,), float(limit))
    assert torch.equal(split(extreme, limit), torch.ones(bits - 1, 2))


@pytest.mark.parametrize("limit", [1, 7])
def test_sweep_is_gauss_seidel(limit: int) -> None:
    """One weight after the other, over several blocks of columns, groups and outputs."""
    matrix = random_matrix(70, 3, groups=2)
    point = rounded(matrix, 7)
    digits = point.codes.clamp(-limit, limit)
    expected, weight = digits.clone(), digits * point.scale[:, None]
    for g, m, n in product(range(2), range(3), range(70)):
        gradient = matrix.cross[g, n, m] - matrix.gram[g, n] @ weight[g, :, m]
        best = expected[g, n, m] + gradient / (point.scale[g, m] * matrix.gram[g, n, n])
        expected[g, n, m] = best.round().clamp(-limit, limit)
        weight[g, n, m] = expected[g, n, m] * point.scale[g, m]
    residual = matrix.residual(digits * point.scale[:, None])
    assert sweep(matrix, residual, digits, point.scale, limit)
    assert torch.equal(digits, expected)
    assert_close(residual, matrix.cross - matrix.gram @ weight, 1e-9)


def test_sweep_ends_at_a_coordinate_wise_minimum() -> None:
    matrix = random_matrix(6, 2)
    point = rounded(matrix, 3)
    residual = matrix.residual(point.weight)
    while sweep(matrix, residual, point.codes, point.scale, 3):
        pass
    least = matrix.loss(point.weight)
    for n, code in product(range(6), range(-3, 4)):
        codes = point.codes.clone()
        codes[:, n] = code
        loss = matrix.loss(codes * point.scale[:, None])
        assert bool((loss >= least - 1e-12).all())


def test_refit_scale_is_the_best_scale() -> None:
    matrix = random_matrix(6, 3)
    point = rounded(matrix, 3)
    residual = matrix.residual(point.weight)
    refit_scale(matrix, point, residual)
    assert_close(residual, matrix.cross - matrix.gram @ point.weight, 1e-9)
    assert_close((residual * point.codes).sum(1), torch.zeros(1, 3), 1e-9)  # the derivative
    dead = GridPoint(torch.zeros(1, 6, 3).double(), point.scale)
    refit_scale(matrix, dead, matrix.cross.clone())
    assert torch.equal(dead.scale, point.scale)


@given(seed=SEED)
def test_no_update_of_bit_split_raises_the_objective(seed: int) -> None:
    matrix, limit = random_matrix(8, 3, groups=2, seed=seed), 7
    point = rounded(matrix, limit)
    digits = split(point.codes, limit)
    loss, residual = matrix.loss(point.weight), matrix.residual(point.weight)
    for _ in range(3):
        refit_scale(matrix, point, residual)
        for digit, value in zip(digits, place_values(digits), strict=True):
            before, loss = loss, matrix.loss(stitch(digits) * point.scale[:, None])
            assert bool((loss <= before + 1e-9).all())
            sweep(matrix, residual, digit, value * point.scale, limit=1)
        point.codes = stitch(digits)
        assert int(point.codes.abs().max()) <= limit
        before, loss = loss, matrix.loss(point.weight)
        assert bool((loss <= before + 1e-9).all())
        assert_close(matrix.loss(point.weight, residual), loss, 1e-9)


@pytest.mark.parametrize("bits", [2, 3])
def test_brute_force_bounds_the_solvers(bits: int) -> None:
    """At the solver's scales no codes at all are better than the best of all; few are."""
    limit = (1 << (bits - 1)) - 1
    every = torch.tensor(list(product(range(-limit, limit + 1), repeat=4))).double().T[None]
    for seed, solver in product(range(5), (BitSplit(), CoordinateDescent())):
        matrix = random_matrix(4, 1, seed=seed)
        point = rounded(matrix, limit)
        start = float(matrix.loss(point.weight))
        solver.optimize(matrix, point, limit)
        losses = replace(matrix, cross=matrix.cross.expand(1, 4, every.shape[2])).loss(
            every * point.scale[:, :, None]
        )
        found = float(matrix.loss(point.weight))
        assert float(losses.min()) - 1e-9 <= found <= start
        assert float((losses < found - 1e-9).double().mean()) < 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_response_split_on_white_inputs_is_the_weight_split(bits: int) -> None:
    limit = (1 << (bits - 1)) - 1
    matrix = random_matrix(9, 4)
    white = replace(matrix, gram=0.7 * torch.eye(9).double()[None], cross=0.7 * matrix.weight)
    start = rounded(matrix, limit)
    start.codes = torch.trunc(matrix.weight / start.scale[:, None])  # not the best codes
    one, other = (GridPoint(start.codes.clone(), start.scale) for _ in range(2))
    digits = split(one.codes, limit)
    split_weights(matrix.weight, one, digits)
    BitSplit(epochs=50, from_weights=False).optimize(white, other, limit)
    assert torch.equal(one.codes, other.codes)
    assert_close(one.scale, other.scale, 1e-9)
    assert not torch.equal(one.codes, start.codes)


@given(bits=BITS, seed=SEED)
def test_weight_space_stages(bits: int, seed: int) -> None:
    """Stage A never raises the rounding error; B finds nothing to change after it."""
    limit = (1 << (bits - 1)) - 1
    matrix = random_matrix(9, 4, seed=seed)
    point = rounded(matrix, limit)

    def error() -> Tensor:
        return (point.weight - matrix.weight).square().sum(1)

    before = error()
    fit_weights(matrix.weight, point, limit)
    assert bool((error() <= before * (1 + 1e-9)).all())
    codes, fitted = point.codes, error()
    split_weights(matrix.weight, point, split(codes, limit))
    assert torch.equal(point.codes, codes) and bool((error() <= fitted * (1 + 1e-9)).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_never_worse_than_the_start(solver: LeastSquaresSolver, name: str, bits: int) -> None:
    problem = make_problem(name, bits)
    start = problem.layer.start
    solution = solver.solve_layer(problem, rng())
    codes, limit = solution.weight.codes, problem.layer.weight_spec.dtype.qmax
    assert codes.dtype == torch.int8 and codes.shape == start.codes.shape
    assert int(codes.to(torch.int32).abs().max()) <= limit
    before = own_loss(solver, problem, start.dequantize())
    after = own_loss(solver, problem, solution.weight.dequantize())
    assert bool((after <= before * (1 + 1e-6)).all())
    if bits < 8:
        assert float(after.sum()) < float(before.sum())
    losses = solution.losses
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(losses))


def test_never_worse_than_rounding_in_any_layer_of_a_network() -> None:
    class Checking(BitSplit):
        def solve_layer(self, problem, rng):  # pyright: ignore
            solution = BitSplit.solve_layer(self, problem, rng)
            before = own_loss(self, problem, problem.layer.start.dequantize())
            after = own_loss(self, problem, solution.weight.dequantize())
            assert bool((after <= before * (1 + 1e-6)).all())
            seen.append(problem.layer.node.name)
            return solution

    seen: list[str] = []
    model = BY_NAME["residual"].make()
    fxquant.quantize(model, [X], config=fxquant.W4A8, solver=Checking(damping=0.1), progress=False)
    assert seen == ["stem_0", "a_0", "b_0", "down_0", "head_fc"]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", ["plain", "depthwise", "transposed", "linear_rank_4"])
def test_bias_removes_the_mean_error(solver: LeastSquaresSolver, name: str) -> None:
    """Of a layer, with a residual operand where there can be one."""
    problem = make_problem(name, residual=name == "plain")
    layer = problem.layer
    solution = solver.solve_layer(problem, rng())
    errors = [
        layer.run(x, layer.weight, layer.bias)
        - layer.run(x_q, solution.weight.dequantize(), solution.bias)
        for x, x_q in zip(problem.float_operands, problem.quantized_operands, strict=True)
    ]
    error = torch.cat(errors).movedim(layer.channel_axis, -1).flatten(0, -2)
    assert float(error.mean(0).abs().max()) < 1e-5


def test_deviation_is_matched_where_asked() -> None:
    problem = make_problem("pointwise", 3)
    layer = problem.layer
    weight = BitSplit(match_deviation=True).solve_layer(problem, rng()).weight.dequantize()
    y, y_hat = (
        torch.cat([layer.run(x, w, None) for x in chunks]).movedim(1, -1).flatten(0, -2).std(0)
        for chunks, w in (
            (problem.float_operands, layer.weight),
            (problem.quantized_operands, weight),
        )
    )
    assert_close(y_hat, y, 1e-4)


def test_steps_compose() -> None:
    """Coordinate descent starts from the codes before it; stages A and B do not."""
    problem = make_problem("plain", 3)
    first = GPTQ(damping=0.1, polish=0).solve_layer(problem, rng())
    after = replace(problem, layer=replace(problem.layer, start=first.weight))
    for solver in (CoordinateDescent(damping=0.1), BitSplit(damping=0.1, from_weights=False)):
        second = solver.solve_layer(after, rng())
        assert second.losses[0] == pytest.approx(first.losses[-1], rel=1e-5)
        assert second.losses[-1] <= first.losses[-1] * (1 + 1e-6)


def test_outputs_that_would_get_worse_keep_their_codes() -> None:
    """Rounding after GPTQ: of every output the better of the two stays."""
    solver, problem = BitSplit(epochs=0), make_problem("plain", 3)
    first = GPTQ().solve_layer(problem, rng())
    after = replace(problem, layer=replace(problem.layer, start=first.weight))
    second = solver.solve_layer(after, rng())
    assert torch.equal(second.weight.codes, first.weight.codes)
    assert torch.equal(second.weight.qparams.scale, first.weight.qparams.scale)
    assert second.losses[-1] > first.losses[-1]  # what the stages found


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_dead_inputs_and_dead_outputs(solver: LeastSquaresSolver) -> None:
    problem = make_problem("depthwise", 4)
    layer = problem.layer
    layer.weight[1] = 0
    solution = RoundToNearest(scale="max").solve_layer(problem, rng())
    problem = replace(
        problem,
        layer=replace(layer, start=solution.weight),
        float_operands=[
            (x.index_fill(1, torch.tensor([3]), 0),) for (x,) in problem.float_operands
        ],
        quantized_operands=[
            (x.index_fill(1, torch.tensor([3]), 0),) for (x,) in problem.quantized_operands
        ],
    )
    result = solver.solve_layer(problem, rng())
    assert bool(torch.isfinite(result.bias).all())
    assert bool(torch.isfinite(result.weight.dequantize()).all())
    error = (result.weight.dequantize()[3] - layer.weight[3]).abs().max()
    assert float(error) <= 0.6 * float(solution.weight.qparams.scale[3])  # nearest codes


def test_frozen_layers_get_a_bias_only() -> None:
    problem = make_problem("plain")
    frozen = replace(problem, layer=replace(problem.layer, frozen=True))
    solution = BitSplit().solve_layer(frozen, rng())
    assert solution.weight is problem.layer.start
    assert not torch.equal(solution.bias, problem.layer.bias)


def test_wide_layers_keep_their_codes_and_say_so() -> None:
    problem = make_problem("plain")
    solution = BitSplit(widest=26).solve_layer(problem, rng())
    assert solution.weight is problem.layer.start and "27 inputs" in solution.note
    assert BitSplit(widest=27).solve_layer(problem, rng()).weight is not problem.layer.start


def test_scales_are_raised_to_keep_the_bias_in_range() -> None:
    """A channel of vanishing weights whose bias takes over the mean."""
    problem = make_problem("plain", 8)
    layer = problem.layer
    layer.weight[2], layer.bias[2] = 1e-12, 1000.0
    solution = CoordinateDescent().solve_layer(problem, rng())
    point = grid_point(solution.weight, 1)
    ratio = solution.bias.double() / (point.scale.flatten() * float(layer.input.scale))
    assert float(ratio.abs().max()) < 2**29


@pytest.mark.parametrize("fields", [{"rows": 0}, {"damping": -1.0}, {"damping": float("nan")}])
def test_invalid_fields(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BitSplit(**fields)


def test_better_than_rounding_end_to_end() -> None:
    model, seen = BY_NAME["depthwise"].make(), {}
    config = fxquant.Config(default=fxquant.OpConfig(4, 8))
    for solver in (RoundToNearest(), BitSplit(), CoordinateDescent(), GPTQ()):
        quantized = fxquant.quantize(model, [X], config=config, solver=solver, progress=False)
        with torch.no_grad():
            seen[type(solver)] = float((quantized(X) - model(X)).square().mean())
    assert all(seen[s] < 0.5 * seen[RoundToNearest] for s in (BitSplit, CoordinateDescent, GPTQ))
