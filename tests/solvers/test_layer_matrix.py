"""The moments of a layer against im2col in float64, and what is derived from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.ops.conv import conv_transpose2d, linear
from fxquant.solvers import Layer, LayerProblem
from fxquant.solvers.layer_matrix import (
    LayerMatrix,
    from_columns,
    to_columns,
    wanted_rows,
)
from tests.solvers.layers import GEOMETRIES, make_layer, make_problem, rechunked
from tests.solvers.matrices import layer_matrix
from tests.strategies import SEED
from tests.tolerance import assert_close

ALL = 10**6  # rows: no subsampling
CASES = [(name, False) for name in GEOMETRIES] + [("plain", True), ("depthwise", True)]


def moments(problem: LayerProblem, rows: int = ALL, seed: int = 0) -> LayerMatrix:
    return layer_matrix(problem, torch.Generator().manual_seed(seed), rows)


def joined(problem: LayerProblem) -> tuple[list[Tensor], list[Tensor]]:
    """All samples of the operands under both prefixes, float64."""
    floats = [torch.cat(o).double() for o in zip(*problem.float_operands, strict=True)]
    quants = [torch.cat(o).double() for o in zip(*problem.quantized_operands, strict=True)]
    return floats, quants


def im2col(layer: Layer, x: Tensor) -> Tensor:
    """`[G, rows, N]` by F.unfold."""
    if layer.node.target is linear:
        return x.reshape(1, -1, x.shape[-1])
    kwargs = layer.node.kwargs
    stride = kwargs["stride"]
    if layer.node.target is conv_transpose2d:
        pixels = torch.ones(x.shape[1], 1, 1, 1, dtype=x.dtype)
        x = F.conv_transpose2d(x, pixels, stride=stride, groups=x.shape[1])
        stride = (1, 1)
    top, bottom, left, right = kwargs["padding"]
    x = F.pad(x, (left, right, top, bottom))
    columns = F.unfold(x, layer.weight.shape[2:], kwargs["dilation"], 0, stride)  # [S, C k k, P]
    columns = columns.transpose(1, 2).flatten(0, 1)  # [rows, C k k]
    return columns.reshape(len(columns), layer.groups, -1).transpose(0, 1)


def wanted(problem: LayerProblem) -> Tensor:
    """y, `[G, rows, M]`."""
    layer = problem.layer
    floats, quants = joined(problem)
    y = layer.run(floats, layer.weight.double(), layer.bias.double()) - sum(quants[1:])
    y = y.movedim(layer.channel_axis, -1).reshape(-1, len(layer.bias))
    return y.reshape(len(y), layer.groups, -1).transpose(0, 1)


@pytest.mark.parametrize(("name", "residual"), CASES)
def test_moments_are_those_of_im2col(name: str, residual: bool) -> None:
    problem = make_problem(name, residual=residual)
    x, y = im2col(problem.layer, joined(problem)[1][0]), wanted(problem)
    matrix = moments(problem)
    assert matrix.rows == x.shape[1] == y.shape[1]
    assert_close(matrix.means[0], x.mean(1))
    assert_close(matrix.means[1], y.mean(1))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    assert_close(matrix.gram, x.mT @ x / x.shape[1])
    assert_close(matrix.cross, x.mT @ y / x.shape[1])
    assert_close(matrix.energy, y.square().mean(1))
    assert torch.equal(from_columns(matrix.weight, problem.layer.weight).float(),
                       problem.layer.weight)  # fmt: skip


@pytest.mark.parametrize(("name", "residual"), CASES)
def test_loss_is_the_error_of_the_layer_at_its_best_bias(name: str, residual: bool) -> None:
    problem = make_problem(name, residual=residual)
    layer = problem.layer
    floats, quants = joined(problem)
    rounded = layer.start.dequantize()
    error = layer.run(floats, layer.weight.double(), None) - layer.run(
        quants, rounded.double(), None
    )
    rows = error.movedim(layer.channel_axis, -1).reshape(-1, len(rounded))
    matrix, columns = moments(problem), to_columns(rounded, layer.groups)
    assert_close(matrix.loss(columns).flatten(), rows.var(0, correction=0))
    assert_close(matrix.bias(columns).flatten(), rows.mean(0) + layer.bias)


def test_wide_layers_are_summed_in_float32() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(9000, 300, generator=rng).relu()
    layer = make_layer(linear, torch.randn(4, 300, generator=rng))
    matrix = moments(LayerProblem(layer, [(x,)], [(x,)]))
    assert_close(matrix.gram[0], torch.cov(x.double().T, correction=0))
    relative = matrix.loss(matrix.weight) / matrix.energy  # 0 up to rounding
    assert 0 < float(relative.abs().max()) < 1e-6


@pytest.mark.parametrize("rows", [ALL, 1])
@pytest.mark.parametrize("name", ["asymmetric", "depthwise", "transposed", "linear"])
def test_chunks_do_not_matter(name: str, rows: int) -> None:
    problem = make_problem(name)
    one, other = (moments(rechunked(problem, size), rows) for size in (1, 6))
    assert one.rows == other.rows
    for field in ("gram", "cross", "energy"):
        assert_close(getattr(one, field), getattr(other, field))


def test_subsample_is_even_over_the_samples_and_the_generators() -> None:
    problem = make_problem("pointwise")  # 6 samples of 12 positions, N = 5
    assert moments(problem, 1).rows == 24  # 4 N
    assert moments(problem, 30).rows == 30 and moments(problem, 31).rows == 36
    first, same, other = (moments(problem, 1, seed).gram for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_subsample_has_the_moments_of_all_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, 34, 34, generator=rng)
    layer = make_layer(GEOMETRIES["plain"][0], torch.randn(3, 2, 3, 3, generator=rng))
    problem = LayerProblem(layer, [(x,)], [(x,)])
    part, whole = moments(problem, 4000), moments(problem)
    assert part.rows == 4000 and whole.rows == 8 * 32 * 32
    assert_close(part.gram, whole.gram, 0.1)
    assert_close(part.cross, whole.cross, 0.1)


def test_small_layers_take_fewer_rows() -> None:
    assert wanted_rows(20_000, 9) == 512 * 9
    assert wanted_rows(20_000, 100) == 20_000
    assert wanted_rows(20_000, 9000) == 4 * 9000


def test_a_large_mean_costs_no_precision() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 7, generator=rng)
    layer = make_layer(linear, torch.randn(4, 7, generator=rng))
    problem = LayerProblem(layer, [(noise + 300,)], [(noise + 300,)])
    x = (noise + 300).double()
    assert_close(moments(problem).gram[0], torch.cov(x.T, correction=0), 1e-5)


def test_constant_inputs_have_no_moments() -> None:
    """In float32 the mean of equal numbers is not quite that number."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1300, 300, generator=rng)
    dead = torch.arange(20, 300, 7)
    x[:, dead] = torch.rand(len(dead), generator=rng)
    layer = make_layer(linear, torch.randn(4, 300, generator=rng))
    matrix = moments(LayerProblem(layer, [(x[:77],), (x[77:],)], [(x[:77],), (x[77:],)]))
    assert int(matrix.gram[0, dead].count_nonzero() + matrix.gram[0, :, dead].count_nonzero()) == 0
    assert int(matrix.cross[0, dead].count_nonzero()) == 0
    assert int(matrix.diagonal.count_nonzero()) == 300 - len(dead)


@given(seed=SEED)
def test_damping_is_a_ridge_towards_the_float_weights(seed: int) -> None:
    matrix = moments(make_problem("groups", seed=seed))
    other = torch.randn(matrix.weight.shape, dtype=torch.float64)
    ridge = 0.3 * matrix.diagonal.mean(1, keepdim=True)
    expected = matrix.loss(other) + ridge * (other - matrix.weight).square().sum(1)
    assert_close(matrix.damped(0.3).loss(other), expected, 1e-9)


def test_inputs_that_do_not_vary_are_solved_in_weight_space() -> None:
    problem = make_problem("depthwise")
    zeros = [(torch.zeros_like(x),) for (x,) in problem.quantized_operands]
    matrix = moments(replace(problem, quantized_operands=zeros)).damped(0.01)
    assert torch.equal(matrix.gram, torch.eye(9).double().expand(5, 9, 9))
    assert torch.equal(matrix.cross, matrix.weight)


def test_no_samples() -> None:
    problem = make_problem("plain")
    with pytest.raises(CalibrationError, match="no samples"):
        moments(replace(problem, float_operands=[], quantized_operands=[]))
