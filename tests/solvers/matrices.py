"""Least-squares problems of layers without a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.solvers.base import LayerProblem
from fxquant.solvers.layer_matrix import LayerMatrix, layer_matrices
from fxquant.solvers.least_squares import GridPoint


def layer_matrix(problem: LayerProblem, rng: torch.Generator, rows: int) -> LayerMatrix:
    """The moments of a layer over all samples."""
    (matrix,) = layer_matrices(problem, rng, rows, 1)
    return matrix


def random_matrix(inputs: int, outputs: int, groups: int = 1, seed: int = 0) -> LayerMatrix:
    """Moments of correlated inputs and of a target near `x v`."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    x = normal(groups, 4 * inputs, inputs) @ normal(groups, inputs, inputs)
    weight = normal(groups, inputs, outputs)
    y = x @ weight + normal(groups, 4 * inputs, outputs)
    rows = x.shape[1]
    means = torch.zeros(groups, inputs).double(), torch.zeros(groups, outputs).double()
    return LayerMatrix(x.mT @ x / rows, x.mT @ y / rows, y.square().mean(1), weight, means, rows)


def rounded(matrix: LayerMatrix, limit: int) -> GridPoint:
    """Nearest codes on covering scales."""
    scale = matrix.weight.abs().amax(1) / limit
    return GridPoint(torch.round(matrix.weight / scale[:, None]).clamp(-limit, limit), scale)
