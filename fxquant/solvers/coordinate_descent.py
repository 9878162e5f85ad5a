"""Coordinate descent on the layer's least-squares problem, over codes or over their digits.

With all other weights fixed, the objective of `layer_matrix.py` is a parabola in one weight. A
coordinate t_n that enters the weights as `w = w' + a t` (a: its unit in real values) has its best
integer value in [-limit, limit] at

    t_n <- clip(round(t_n + R_n / (a E_nn))),     R = C - E w

and a change by d moves the residual correlations: `R <- R - a d E_n`. `sweep` visits n = 0..N-1
(Gauss-Seidel), all output channels at once. Within a block of columns it keeps the best real values
`t + R / (a E_nn)` instead, of which a change moves only those of other columns; R follows after the
block in one matrix product. In between, the best scale of a channel

    s <- (C . q) / (q^T E q)

Every step is an exact minimization over its variable, so the objective never rises.

`CoordinateDescent` takes whole codes as coordinates. It starts from the codes at hand, so it also
polishes what another solver left. It is the ablation of `BitSplit`, which takes ternary digits:
whole codes cost b - 1 times less, but are no published method.

Symbols: E -> matrix.gram, C -> matrix.cross, R -> residual, q -> codes, s -> scale, a -> unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.solvers.layer_matrix import LayerMatrix
from fxquant.solvers.least_squares import GridPoint, LeastSquaresSolver, relative

_BLOCK = 64  # columns whose updates are collected for one matrix product
_SINGULAR = 1e-6  # output variance over that of uncorrelated inputs, below which it is noise
_QUICK_EPOCHS = 2  # to judge a damping


@dataclass(frozen=True, slots=True)
class CoordinateDescent(LeastSquaresSolver):
    """See the module docstring.

    Attributes:
        epochs: Most sweeps over all codes; stops early when none changes.
    """

    epochs: int = 10

    def quick(self) -> CoordinateDescent:
        """See LeastSquaresSolver."""
        return replace(self, epochs=min(self.epochs, _QUICK_EPOCHS))

    def optimize(self, matrix: LayerMatrix, start: GridPoint, limit: int) -> tuple[float, ...]:
        """See LeastSquaresSolver."""
        return descend(matrix, start, limit, self.epochs)


def descend(matrix: LayerMatrix, point: GridPoint, limit: int, epochs: int) -> tuple[float, ...]:
    """Sweeps over codes and best scales in turn; changes `point`.

    Returns:
        Objective before the first and after every epoch, relative to the variance of the outputs.
    """
    residual = matrix.residual(point.weight)
    losses = [relative(matrix, matrix.loss(point.weight, residual))]
    for _ in range(epochs):
        refit_scale(matrix, point, residual)
        changed = sweep(matrix, residual, point.codes, point.scale, limit)
        losses.append(relative(matrix, matrix.loss(point.weight, residual)))
        if not changed:
            break
    return tuple(losses)


def refit_scale(matrix: LayerMatrix, point: GridPoint, residual: Tensor) -> None:
    """Set the best scale of every output where it has one.

    Args:
        matrix: The problem.
        point: Its scale is changed.
        residual: R of the point, `[G, N, M]`; updated in place.
    """
    response = (matrix.cross - residual) / point.scale[:, None]  # E q
    curvature = (response * point.codes).sum(1)  # [G, M]
    alignment = (matrix.cross * point.codes).sum(1)
    uncorrelated = (matrix.diagonal[:, :, None] * point.codes.square()).sum(1)
    defined = (alignment > 0) & (curvature > _SINGULAR * uncorrelated)
    point.scale = torch.where(defined, alignment / curvature, point.scale)
    torch.sub(matrix.cross, point.scale[:, None] * response, out=residual)


def sweep(matrix: LayerMatrix, residual: Tensor, digits: Tensor, unit: Tensor, limit: int) -> bool:
    """Visit every coordinate once.

    Args:
        matrix: The problem.
        residual: R, `[G, N, M]`; updated in place.
        digits: t, `[G, N, M]`; updated in place.
        unit: a, `[G, M]`, positive.
        limit: Largest magnitude of a digit.

    Returns:
        Whether a digit changed.
    """
    gram, changed = matrix.gram, False
    diagonal = matrix.diagonal
    inverse = torch.where(diagonal > 0, 1 / diagonal, torch.zeros_like(diagonal))
    for first in range(0, gram.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        codes, own = digits[:, block], inverse[:, block, None]
        wanted = codes + residual[:, block] * own / unit[:, None]  # best real values
        coupling = gram[:, block, block] * own  # E_nk / E_nn
        moves = torch.empty_like(wanted)
        columns = zip(wanted.unbind(1), codes.unbind(1), moves.unbind(1), strict=True)
        for n, (best, code, move) in enumerate(columns):
            torch.sub(best.round().clamp_(-limit, limit), code, out=move)
            code += move
            wanted[:, n + 1 :].baddbmm_(coupling[:, n + 1 :, n : n + 1], move[:, None], alpha=-1)
        if bool(moves.any()):
            changed = True
            residual.baddbmm_(gram[:, :, block], moves * unit[:, None], alpha=-1)
    return changed
