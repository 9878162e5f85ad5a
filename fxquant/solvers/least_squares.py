"""What the solvers of the layer's least-squares problem share: the frame around `optimize`.

The problem is that of `layer_matrix.py`: codes q and scales s of least `|y - x_q (s q) - b|^2`, the
bias b always at its best, `E[y] - s q . E[x_q]`. The output channels are independent, so each one
keeps what it started from if the optimizer's result is worse by the same objective.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.numerics.types import QParams, QTensor
from fxquant.solvers.base import Layer, LayerProblem, LayerSolution, LayerSolver
from fxquant.solvers.cross_validation import FOLDS, choose_damping
from fxquant.solvers.layer_matrix import (
    LayerMatrix,
    from_columns,
    layer_matrices,
    merged,
    to_columns,
)
from fxquant.solvers.round_to_nearest import mean_shift
from fxquant.solvers.scale_search import floor_scale


@dataclass(slots=True, eq=False)
class GridPoint:
    """Codes and scales of all outputs, in the layout of `LayerMatrix`, float64.

    Attributes:
        codes: q, `[G, N, M]`, integers.
        scale: s, `[G, M]`.
    """

    codes: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        """`s q`, `[G, N, M]`."""
        return self.codes * self.scale[:, None]

    def copy(self) -> GridPoint:
        """One that changes alone."""
        return GridPoint(self.codes.clone(), self.scale.clone())


@dataclass(frozen=True, slots=True)
class LeastSquaresSolver(LayerSolver):
    """Solves every layer by its moments.

    Attributes:
        rows: Input patches a layer's moments are taken from, but 4 to 512 for every weight of an
            output.
        damping: Pull towards the float weights, relative to the mean variance of the inputs; None
            chooses one for every layer (cross_validation.py).
        widest: Layers with more inputs per output keep their codes (the Gram matrix has the square
            of that many entries); the report says so.
    """

    rows: int = 20_000
    damping: float | None = None
    widest: int = 8192

    def __post_init__(self) -> None:
        for name, value, least in (("rows", self.rows, 1), ("damping", self.damping, 0)):
            if value is not None and not value >= least:
                raise ConfigError(f"{type(self).__name__}.{name}={value} is below {least}")

    @abstractmethod
    def optimize(self, matrix: LayerMatrix, start: GridPoint, limit: int) -> tuple[float, ...]:
        """Change `start` to lower the objective.

        Args:
            matrix: The damped problem.
            start: Codes in `[-limit, limit]` and positive scales; changed in place.
            limit: Largest code.

        Returns:
            The objective over the iterations, relative to the variance of the outputs.
        """

    def quick(self) -> Self:
        """A cheaper variant, whose result tells how good a damping is."""
        return self

    def finish(self, matrix: LayerMatrix, point: GridPoint) -> None:
        """Last changes that need not lower the objective; `matrix` has no damping."""

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        """See LayerSolver."""
        layer, start = problem.layer, problem.layer.start
        width, note = layer.weight[0].numel(), ""
        if width > self.widest:
            note = f"codes kept: {width} inputs an output are more than widest={self.widest}"
        if layer.frozen or note:
            return LayerSolution(start, layer.bias + mean_shift(problem, start), note=note)
        limit = layer.weight_spec.dtype.qmax
        first = grid_point(start, layer.groups)
        parts = layer_matrices(problem, rng, self.rows, FOLDS if self.damping is None else 1)
        damping = self.damping
        if damping is None:
            quick = self.quick()

            def solve(damped: LayerMatrix) -> Tensor:
                trial = first.copy()
                quick.optimize(damped, trial, limit)
                return trial.weight

            damping = choose_damping(parts, solve)
        matrix, point = merged(parts), first.copy()
        damped = matrix.damped(damping)
        losses = self.optimize(damped, point, limit)
        point.scale = point.scale.float().double()  # as it will be stored
        worse = damped.loss(point.weight) > damped.loss(first.weight)
        point.codes = torch.where(worse[:, None], first.codes, point.codes)
        point.scale = torch.where(worse, first.scale, point.scale)
        self.finish(matrix, point)
        return _solution(layer, matrix, point, losses)


def grid_point(weight: QTensor, groups: int) -> GridPoint:
    """Codes and scales of a layer's weight."""
    scale = weight.qparams.scale.double().reshape(groups, -1)
    return GridPoint(to_columns(weight.codes, groups), scale)


def relative(matrix: LayerMatrix, loss: Tensor) -> float:
    """Sum of a loss `[G, M]` over the summed variance of the outputs."""
    return float(loss.sum() / matrix.energy.sum().clamp(min=torch.finfo(torch.float64).tiny))


def _solution(
    layer: Layer, matrix: LayerMatrix, point: GridPoint, losses: tuple[float, ...]
) -> LayerSolution:
    """Codes as the device stores them, scales no finer than legal, and the best bias."""
    bias = matrix.bias(point.weight).flatten()
    scale, raised = floor_scale(point.scale.flatten(), bias, layer.input, layer.output)
    note = ""
    if raised:
        limit, weight = layer.weight_spec.dtype.qmax, point.weight
        point.scale = scale.reshape(point.scale.shape)
        point.codes = torch.round(weight / point.scale[:, None]).clamp(-limit, limit)
        bias = matrix.bias(point.weight).flatten()
        note = f"weight scale of {raised} channel(s) raised to keep the bias in range"
    return LayerSolution(_stored(layer, point), bias.to(layer.bias.dtype), losses, note)


def _stored(layer: Layer, point: GridPoint) -> QTensor:
    scale = point.scale.flatten().float()
    zero_point = torch.zeros(scale.shape, dtype=torch.int32, device=scale.device)
    codes = from_columns(point.codes, layer.weight).to(torch.int8)
    return QTensor(codes, QParams(layer.weight_spec, scale, zero_point))
