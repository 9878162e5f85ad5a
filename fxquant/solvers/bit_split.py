"""Bit-Split and Stitching: codes as ternary digits, each optimized for the layer's response.

Sources: Wang, Chen, He, Cheng, "Towards Accurate Post-training Network Quantization via Bit-Split
and Stitching", ICML 2020; extended in TPAMI 2023. Stages and update rules as in the authors'
released code.

A code of b bits (sign included) is the sum of b-1 ternary digits, the most significant first:

    q = sum_i 2^(b-2-i) t_i,   t_i in {-1, 0, 1},  i = 0 .. b-2;    |q| <= 2^(b-1) - 1

The representation is redundant (1 = 01 = 1,-1), so that changing one digit can cross several
codes. Three stages, per output channel:

A. fixed-point fit        min |v - s q|^2:   q <- clip(round(v / s)),  s <- (v.q) / (q.q), in turn
B. weight-space split     the same objective, digit by digit, r = (v - s (q - 2^i t_i)):
                          t_i <- clip(round(r / (2^i s)), -1, 1),  s <- (v.q) / (q.q)
C. response split         min |y - x_q (s q)|^2 (see `layer_matrix.py`): s <- (C.q) / (q^T E q),
                          then for every digit, for every weight n = 0 .. N-1 in turn:
                          corr = C_n - s sum_k E_nk q_k + 2^i s E_nn t_i
                          t_i <- sign(corr) if 2 |corr| > 2^i s E_nn else 0

The rule of C is the sweep of `coordinate_descent.py` with unit 2^i s and limit 1; one rule of
minimization, so no update of C ever raises the objective. It needs moments only, not the data.

Choices where the published text has none or the released code another: A starts from the layer's
present scale instead of max |v| / qmax, so that a scale search can precede it; x_q comes from the
quantized prefix, y from the float network (the code's "ec" option); sweeps stop when no digit
changes; a ridge holds directions the samples leave open; batch norms are folded, so the statistics
that the code re-estimates become the exact mean in the bias and, if wanted, `match_deviation`:
s <- s std(y) / std(x_q s q), the ratio within [0.8, 1.25]. After a converged stage A, B finds
nothing to change (rounding is optimal for a given s); with epochs=0 the two are the weight-space
variant that C is compared with.

Symbols: v -> matrix.weight, q -> codes, s -> scale, t -> digits [b-1, G, N, M], E -> gram,
C -> cross, 2^i s -> unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.solvers.coordinate_descent import refit_scale, sweep
from fxquant.solvers.layer_matrix import LayerMatrix
from fxquant.solvers.least_squares import GridPoint, LeastSquaresSolver, relative

_WEIGHT_EPOCHS = 50  # stages A and B, as in the released code
_UNCHANGED = 1e-9  # relative change of scales that ends stage A
_RATIO = (0.8, 1.25)  # bounds of std(y) / std(y_hat)
_QUICK_EPOCHS = 2  # to judge a damping


@dataclass(frozen=True, slots=True)
class BitSplit(LeastSquaresSolver):
    """See the module docstring.

    Attributes:
        epochs: Most sweeps of stage C over all digits; the released code runs 100.
        from_weights: Stages A and B give the first codes; False starts stage C from the codes of
            the step before.
        match_deviation: Also match the standard deviation of every output, at some cost in
            squared error.
    """

    epochs: int = 10
    from_weights: bool = True
    match_deviation: bool = False

    def quick(self) -> BitSplit:
        """See LeastSquaresSolver."""
        return replace(self, epochs=min(self.epochs, _QUICK_EPOCHS))

    def optimize(self, matrix: LayerMatrix, start: GridPoint, limit: int) -> tuple[float, ...]:
        """See LeastSquaresSolver."""
        if self.from_weights:
            fit_weights(matrix.weight, start, limit)
        digits = split(start.codes, limit)
        if self.from_weights:
            split_weights(matrix.weight, start, digits)
        residual = matrix.residual(start.weight)
        losses = [relative(matrix, matrix.loss(start.weight, residual))]
        for _ in range(self.epochs):
            changed = False
            refit_scale(matrix, start, residual)
            for digit, value in zip(digits, place_values(digits), strict=True):
                changed |= sweep(matrix, residual, digit, value * start.scale, limit=1)
            start.codes = stitch(digits)
            losses.append(relative(matrix, matrix.loss(start.weight, residual)))
            if not changed:
                break
        return tuple(losses)

    def finish(self, matrix: LayerMatrix, point: GridPoint) -> None:
        """See LeastSquaresSolver."""
        if not self.match_deviation:
            return
        weight = point.weight
        variance = (weight * (matrix.gram @ weight)).sum(1)
        ratio = (matrix.energy / variance).sqrt().clamp(*_RATIO)
        point.scale = torch.where(variance > 0, point.scale * ratio, point.scale)


def place_values(digits: Tensor) -> list[float]:
    """2^(b-2-i) of every digit, the most significant first."""
    return [2.0**i for i in reversed(range(len(digits)))]


def split(codes: Tensor, limit: int) -> Tensor:
    """Binary digits of the magnitudes with the sign of the code.

    Args:
        codes: `[...]`, integers in `[-limit, limit]`.
        limit: `2^(b-1) - 1`.

    Returns:
        `[b-1, ...]` in {-1, 0, 1}, the most significant first.
    """
    magnitude = codes.abs().to(torch.int64)
    places = [1 << i for i in reversed(range(limit.bit_length()))]
    bits = torch.stack([(magnitude & place) != 0 for place in places])
    return bits * codes.sign()


def stitch(digits: Tensor) -> Tensor:
    """The codes of digits; the inverse of `split`."""
    values = torch.tensor(place_values(digits), dtype=digits.dtype, device=digits.device)
    return torch.tensordot(values, digits, 1)


def fit_weights(weight: Tensor, point: GridPoint, limit: int) -> None:
    """Stage A; changes `point`."""
    for _ in range(_WEIGHT_EPOCHS):
        before = point.scale
        point.codes = torch.round(weight / before[:, None]).clamp(-limit, limit)
        _fit_scale(weight, point)
        if bool(((point.scale - before).abs() <= _UNCHANGED * before).all()):
            break


def split_weights(weight: Tensor, point: GridPoint, digits: Tensor) -> None:
    """Stage B; changes `point` and `digits`."""
    for _ in range(_WEIGHT_EPOCHS):
        before = point.codes
        _fit_scale(weight, point)
        for digit, value in zip(digits, place_values(digits), strict=True):
            unit = value * point.scale[:, None]
            left = weight - point.weight + unit * digit
            digit.copy_(torch.round(left / unit).clamp(-1, 1))
            point.codes = stitch(digits)
        if torch.equal(before, point.codes):
            break


def _fit_scale(weight: Tensor, point: GridPoint) -> None:
    """The scale of least squares for the codes; kept where all codes are 0."""
    alignment, energy = (weight * point.codes).sum(1), point.codes.square().sum(1)
    point.scale = torch.where(alignment > 0, alignment / energy, point.scale)
