"""A layer as a matrix problem: `y = x W^T` in second moments.

A convolution multiplies its weights with patches of its input (im2col). Over K patches x_q of the
quantized prefix and the K outputs y wanted there, the squared error of any weights is

    L(w_m) = E[(y_m - b_m - w_m . x_q)^2],  at the best bias  b_m = E[y_m] - w_m . E[x_q]:
           = Y_m - 2 w_m . C_m + w_m^T E w_m
    E = cov(x_q, x_q) [N, N],   C_m = cov(x_q, y_m) [N],   Y_m = var(y_m)

so that layer-wise solvers need E, C and Y, not the data. Output m belongs to one channel group and
sees that group's inputs only; a depthwise layer is a batch of small problems. The wanted output y
is the float layer's result on float inputs, before its clamp, less the operand that the quantized
layer adds (a residual): the weights then also absorb the errors of the prefix.

A ridge towards the float weights v keeps directions the data says nothing about in place:

    L(w) + lambda |w - v|^2  is the same form with  E + lambda I,  C + lambda v,  Y + lambda |v|^2

Moments are summed around the mean of the first rows: products of a few thousand rows in float32
(float64 where the layer is small), their sums in float64.

Symbols: E -> gram, C -> cross, Y -> energy, v -> weight, N -> inputs of a group (C/G * KH * KW),
M -> outputs of a group, G -> groups, lambda -> damping * mean diagonal of E.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.ops.conv import conv_transpose2d, insert_zeros, linear
from fxquant.solvers.base import Layer, LayerProblem

_SMALL = 256  # inputs up to which products are float64 as well
_PIECE = 4096  # rows whose patches are in memory at once
_CONSTANT = 1e-12  # a column's variance over its mean square that is only rounding noise


@dataclass(frozen=True, slots=True, eq=False)
class LayerMatrix:
    """See the module docstring; all float64.

    Attributes:
        gram: E, `[G, N, N]`.
        cross: C, `[G, N, M]`.
        energy: Y, `[G, M]`.
        weight: Float weight v, `[G, N, M]`.
        means: Of the inputs, `[G, N]`, and of the wanted outputs, `[G, M]`.
        rows: K, from how many rows the moments are.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    weight: Tensor
    means: tuple[Tensor, Tensor]
    rows: int

    @property
    def diagonal(self) -> Tensor:
        """Variances of the inputs, `[G, N]`."""
        return self.gram.diagonal(dim1=1, dim2=2)

    def residual(self, weight: Tensor) -> Tensor:
        """What is left to explain, `C - E w`: minus half the gradient, `[G, N, M]`.

        Args:
            weight: `[G, N, M]`.
        """
        return self.cross - self.gram @ weight

    def loss(self, weight: Tensor, residual: Tensor | None = None) -> Tensor:
        """Mean squared error of every output at its best bias, `[G, M]`.

        Args:
            weight: `[G, N, M]`.
            residual: That of the weights, if it is known.
        """
        known = self.residual(weight) if residual is None else residual
        return self.energy - (weight * (self.cross + known)).sum(1)

    def bias(self, weight: Tensor) -> Tensor:
        """The best bias of every output, `[G, M]`.

        Args:
            weight: `[G, N, M]`.
        """
        return self.means[1] - (weight * self.means[0][:, :, None]).sum(1)

    def damped(self, damping: float) -> LayerMatrix:
        """With a ridge towards the float weights.

        Args:
            damping: lambda over the mean input variance of a group. A group whose inputs do not
                vary at all gets lambda 1: its weights are just rounded.
        """
        mean = self.diagonal.mean(1)
        ridge = torch.where(mean > 0, damping * mean, torch.ones_like(mean))[:, None]  # [G, 1]
        gram = self.gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_(ridge)
        return replace(
            self,
            gram=gram,
            cross=self.cross + ridge[:, None] * self.weight,
            energy=self.energy + ridge * self.weight.square().sum(1),
        )


def to_columns(weight: Tensor, groups: int) -> Tensor:
    """`[O, ...]` to `[G, N, M]`, float64."""
    return weight.double().reshape(groups, len(weight) // groups, -1).transpose(1, 2).contiguous()


def from_columns(columns: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_columns`; the shape is that of `like`."""
    return columns.transpose(1, 2).reshape(like.shape)


def layer_matrices(
    problem: LayerProblem, rng: torch.Generator, rows: int, folds: int
) -> tuple[LayerMatrix, ...]:
    """Accumulate the moments, chunk by chunk, over every `folds`-th sample.

    Args:
        problem: The layer and its inputs under both prefixes.
        rng: Chooses rows; which ones does not depend on how the samples are chunked.
        rows: Wanted K; see `wanted_rows`. A layer with more output positions is subsampled, evenly
            over the samples and at random positions within each.
        folds: Parts the samples are dealt out to, fewer if there are fewer samples.

    Returns:
        One matrix a part; `merged` makes one of several.

    Raises:
        CalibrationError: There are no samples.
    """
    layer = problem.layer
    weight = to_columns(layer.weight, layer.groups)
    samples = sum(len(operands[0]) for operands in problem.quantized_operands)
    moments = [_Moments(weight, layer.bias) for _ in range(max(1, min(folds, samples)))]
    per_sample, seen = -(-wanted_rows(rows, weight.shape[1]) // max(samples, 1)), 0
    for floats, quantized in zip(problem.float_operands, problem.quantized_operands, strict=True):
        x, x_q = patches(layer, floats[0]), patches(layer, quantized[0])
        added = [f - q for f, q in zip(floats[1:], quantized[1:], strict=True)]
        added = [a.movedim(layer.channel_axis, -1) for a in added]
        height, width = x.shape[1:3]
        for chosen in _choose(len(x), height * width, per_sample, rng):
            fold = (seen + chosen // (height * width)) % len(moments)
            for number, part in enumerate(moments):
                own = chosen if len(moments) == 1 else chosen[fold == number]
                position = own % (height * width)
                rows_at = own // (height * width), position // width, position % width
                if len(own):
                    part.add(x[rows_at], x_q[rows_at], [a[rows_at] for a in added])
        seen += len(x)
    return tuple(part.result() for part in moments)


def wanted_rows(rows: int, inputs: int) -> int:
    """K for N inputs: as asked for, but from 4 N to 512 N."""
    return max(4 * inputs, min(rows, 512 * inputs))


def merged(parts: Sequence[LayerMatrix]) -> LayerMatrix:
    """The matrix of the samples of all parts."""
    if len(parts) == 1:
        return parts[0]
    rows = sum(part.rows for part in parts)
    shares = [part.rows / rows for part in parts]

    def mean(terms: Iterable[Tensor]) -> Tensor:
        return reduce(torch.add, (w * term for w, term in zip(shares, terms, strict=True)))

    x, y = mean(p.means[0] for p in parts), mean(p.means[1] for p in parts)
    shifts = [(p.means[0] - x, p.means[1] - y) for p in parts]
    pairs = list(zip(parts, shifts, strict=True))
    return LayerMatrix(
        mean(p.gram + dx[:, :, None] * dx[:, None, :] for p, (dx, _) in pairs),
        mean(p.cross + dx[:, :, None] * dy[:, None, :] for p, (dx, dy) in pairs),
        mean(p.energy + dy.square() for p, (_, dy) in pairs),
        parts[0].weight,
        (x, y),
        rows,
    )


def patches(layer: Layer, x: Tensor) -> Tensor:
    """What each output position multiplies with the weights, as a view where possible.

    Returns:
        `[S, OH, OW, C, KH, KW]`, of a linear layer `[S, positions, 1, K]`.
    """
    if layer.node.target is linear:
        return x.reshape(len(x), -1, 1, x.shape[-1])
    kwargs: Any = layer.node.kwargs
    stride, (dh, dw) = kwargs["stride"], kwargs["dilation"]
    if layer.node.target is conv_transpose2d:
        x, stride = insert_zeros(x, stride), (1, 1)
    top, bottom, left, right = kwargs["padding"]
    x = F.pad(x, (left, right, top, bottom))
    kh, kw = layer.weight.shape[2:]
    x = x.unfold(2, (kh - 1) * dh + 1, stride[0])[..., ::dh]
    x = x.unfold(3, (kw - 1) * dw + 1, stride[1])[..., ::dw]  # [S, C, OH, OW, KH, KW]
    return x.permute(0, 2, 3, 1, 4, 5)


def _choose(samples: int, positions: int, wanted: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Rows of a chunk as `sample * positions + position`, in pieces."""
    if wanted >= positions:
        chosen = torch.arange(samples * positions)
    else:
        picks = [torch.randperm(positions, generator=rng)[:wanted] for _ in range(samples)]
        chosen = torch.cat([pick + i * positions for i, pick in enumerate(picks)])
    yield from chosen.split(_PIECE)


class _Moments:
    """Sums over rows of inputs, outputs and their products, around the first rows' mean."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.float_weight = weight, weight.float()
        self.bias = bias.reshape(len(weight), 1, -1)
        self.rows = 0
        self.centres: tuple[Tensor, Tensor] | None = None
        self.sums: list[Tensor] = []

    def _grouped(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), len(self.weight), -1).transpose(0, 1)

    def add(self, x_float: Tensor, x_q: Tensor, added: Sequence[Tensor]) -> None:
        """Input rows of both prefixes `[R, C, ...]`, and operands to add to the target `[R, O]`."""
        x = self._grouped(x_q)  # [G, R, N]
        y = self._grouped(x_float) @ self.float_weight + self.bias  # [G, R, M]
        for operand in added:
            y = y + self._grouped(operand)
        if x.shape[2] <= _SMALL:
            x, y = x.double(), y.double()
        if self.centres is None:
            self.centres = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - self.centres[0], y - self.centres[1]
        terms = (x.mT @ x, x.mT @ y, y.square().sum(1), x.sum(1), y.sum(1))
        self.rows += x.shape[1]
        self.sums = [
            term.double() if not self.sums else total.add_(term)
            for total, term in zip(self.sums or terms, terms, strict=True)
        ]

    def result(self) -> LayerMatrix:
        """Covariances; what varies only by rounding noise is constant."""
        if self.centres is None:
            raise CalibrationError(
                "a layer got no samples", remedy="pass at least one batch of calibration data"
            )
        gram, cross, energy, x, y = (total / self.rows for total in self.sums)
        gram -= x[:, :, None] * x[:, None, :]
        cross -= x[:, :, None] * y[:, None, :]
        energy -= y.square()
        means = x + self.centres[0][:, 0], y + self.centres[1][:, 0]
        varies = gram.diagonal(dim1=1, dim2=2) > _CONSTANT * means[0].square()
        gram *= varies[:, :, None] & varies[:, None, :]
        cross *= varies[:, :, None]
        return LayerMatrix(gram, cross, energy.clamp(min=0), self.weight, means, self.rows)
