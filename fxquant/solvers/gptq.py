"""GPTQ: round one column after the other, let the rest make up for the error.

Sources: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, algorithm 1; Frantar, Singh, Alistarh, "Optimal Brain Compression",
NeurIPS 2022, for the update of single weights.

The objective of `layer_matrix.py` is, up to a constant, `(w - w*)^T H (w - w*)` with `H = E +
lambda I` and the minimizer of the damped problem

    w* = H^-1 (C + lambda v)

GPTQ proper starts from the float weights v; starting from w* makes the target asymmetric: the
weights absorb the error of the quantized prefix before rounding adds its own. With the upper
Cholesky factor U of `H^-1 = U^T U`, in a fixed order of the inputs, for n = 0 .. N-1:

    q_n = clip(round(w_n / s)),   e = (w_n - s q_n) / U_nn,   w_k <- w_k - e U_nk   for k > n

The order is by falling variance of the inputs ("act-order"): what cannot be undone any more is
rounded first where it costs most. Within a block of columns updates are applied at once, to the
rest as one matrix product after it.

The scales are those the layer comes with. Between passes each channel takes the best scale for its
codes, `s <- (C . q) / (q^T E q)`, and is rounded anew with it; the best pass of each channel is
kept. This finds the nearest local minimum; with few codes a channel has several, so narrow weights
start from several multiples of the scale. Coordinate descent then removes what the fixed order
left.

Symbols: H -> gram of the damped problem, v -> matrix.weight, w -> weight, U -> factor, s -> scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.errors import ConfigError, NumericsError
from fxquant.solvers.coordinate_descent import descend, refit_scale
from fxquant.solvers.layer_matrix import LayerMatrix
from fxquant.solvers.least_squares import GridPoint, LeastSquaresSolver, relative

_BLOCK = 64  # columns whose updates are collected for one matrix product
_FEW_CODES = 15  # largest code of widths that start from several scales: 5 bits


@dataclass(frozen=True, slots=True)
class GPTQ(LeastSquaresSolver):
    """See the module docstring.

    Attributes:
        act_order: By falling variance of the inputs instead of their natural order.
        passes: Roundings; before each but the first the scales are fitted to the codes.
        starts: Multiples of the scale to start from, with weights of at most 5 bits.
        polish: Most epochs of coordinate descent afterwards.
    """

    act_order: bool = True
    passes: int = 3
    starts: tuple[float, ...] = (1.0, 0.9, 0.8, 1.1)
    polish: int = 10

    def __post_init__(self) -> None:
        LeastSquaresSolver.__post_init__(self)
        if self.damping == 0:
            raise ConfigError("GPTQ.damping is 0", why="the Gram matrix may be singular",
                              remedy="use a small positive damping")  # fmt: skip
        if self.passes < 1:
            raise ConfigError(f"GPTQ.passes={self.passes} is below 1")
        if not self.starts or min(self.starts) <= 0:
            raise ConfigError(f"GPTQ.starts={self.starts} are no multiples of a scale",
                              remedy="pass positive numbers, such as (1.0, 0.9)")  # fmt: skip

    def quick(self) -> GPTQ:
        """See LeastSquaresSolver."""
        return replace(self, passes=1, starts=(1.0,), polish=0)

    def optimize(self, matrix: LayerMatrix, start: GridPoint, limit: int) -> tuple[float, ...]:
        """See LeastSquaresSolver."""
        best = matrix.loss(start.weight)
        losses = [relative(matrix, best)]
        first = start.scale
        order = _order(matrix, self.act_order)
        target, factor = _factor(matrix, order)
        starts = self.starts if limit <= _FEW_CODES else self.starts[:1]
        for multiple in starts:
            trial = GridPoint(start.codes, first * multiple)
            for _ in range(self.passes):
                trial.codes = _round(target, factor, order, trial.scale, limit)
                residual = matrix.residual(trial.weight)
                refit_scale(matrix, trial, residual)
                loss = matrix.loss(trial.weight, residual)
                better = loss < best
                start.codes = torch.where(better[:, None], trial.codes, start.codes)
                start.scale = torch.where(better, trial.scale, start.scale)
                best = torch.minimum(loss, best)
                losses.append(relative(matrix, best))
        if self.polish:
            losses += descend(matrix, start, limit, self.polish)[1:]
        return tuple(losses)


def _order(matrix: LayerMatrix, act_order: bool) -> Tensor:
    """Which input comes when, `[G, N]`."""
    diagonal = matrix.diagonal
    if act_order:
        return diagonal.argsort(dim=1, descending=True, stable=True)
    return torch.arange(diagonal.shape[1]).expand(diagonal.shape)


def _factor(matrix: LayerMatrix, order: Tensor) -> tuple[Tensor, Tensor]:
    """w* `[G, N, M]` and U `[G, N, N]`, both in the given order."""
    gram = matrix.gram.gather(1, order[:, :, None].expand_as(matrix.gram))
    gram = gram.gather(2, order[:, None, :].expand_as(gram))
    cross = matrix.cross.gather(1, order[:, :, None].expand_as(matrix.cross))
    lower, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        raise NumericsError(
            "the Gram matrix of a layer's inputs is not positive definite",
            why="its damping is below the rounding noise of the sums",
            remedy="raise GPTQ.damping",
        )
    target = torch.cholesky_solve(cross, lower)
    return target, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _round(target: Tensor, factor: Tensor, order: Tensor, scale: Tensor, limit: int) -> Tensor:
    """The codes of one pass, in natural order, `[G, N, M]`."""
    weight, codes = target.clone(), torch.empty_like(target)
    for first in range(0, weight.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        inside, own = weight[:, block], factor[:, block, block]
        errors = torch.empty_like(inside)
        for n in range(inside.shape[1]):
            column = inside[:, n]
            code = codes[:, first + n] = torch.round(column / scale).clamp_(-limit, limit)
            errors[:, n] = (column - code * scale) / own[:, n, n, None]
            inside[:, n + 1 :].baddbmm_(own[:, n, n + 1 :, None], errors[:, n, None], alpha=-1)
        rest = slice(first + inside.shape[1], None)
        weight[:, rest].baddbmm_(factor[:, block, rest].mT, errors, alpha=-1)
    return torch.empty_like(codes).scatter_(1, order[:, :, None].expand_as(codes), codes)
