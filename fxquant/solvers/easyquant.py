"""EasyQuant: scales by grid search on the cosine of layer outputs.

Problem, for every layer: inverse scales S of its input and of its weight such that

    maximize  cos(O, O_q)    O   = clamp(conv(A; W) + b)                 in the float network
                             O_q = clamp(conv(Q(A_q, S_a); Q(W, S_w)) + b)
                             Q(X, S) = clip(round(X * S)) / S

`A_q` is the input under the quantized prefix, so a layer absorbs what is left of the errors before
it. Candidates are `n` evenly spaced values of S in `[low, high]` times the present one, and the
present one: the cosine never decreases.

* S_a, as a value is produced: one number for all layers that read it, itself or behind operators
  that keep its grid (max pooling, reshaping), maximizing the sum of their cosines with the weights
  they have then. Of a value no layer reads, the cosine of the value.
* S_w, as a layer is solved: one number a channel. A candidate is tried for all channels at once
  and each keeps its own best, for a channel of the weight touches that channel of O only.

Source: Wu et al., "EasyQuant: Post-training Quantization via Scale Optimization", 2020; the
defaults of `low`, `high` and `candidates` are the paper's.
Symbols: A_q -> quantized patches, O -> target, S -> 1 / scale, alpha -> low, beta -> high,
n -> candidates.

Choices where the paper has none, or where ours differs:
* The order follows execution: S_a of a value, S_w of its readers, the next value. The paper
  searches all weights first, then all activations. `rounds` > 1 alternates inside a layer: further
  searches of S_a see the weights as S_w would be chosen for them.
* A cosine is over all samples and positions at once, per channel for weights. Instead of 50 whole
  images it sees `positions` positions drawn from all images.
* Cosines within 1e-6 are equal, the smaller squared error decides. A channel that is zero in float
  has cosine 1 with zero, 0 with anything else.
* Layers that add a residual are compared before the sum and its clamp, like the paper's code does.
* The zero point of a value stays: its range is scaled about zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.floats import channel_bounds
from fxquant.numerics.types import QParams, QTensor
from fxquant.solvers.base import Layer, LayerProblem, LayerSolution, LayerSolver, ValueProblem
from fxquant.solvers.fake_quantize import fake_quantize
from fxquant.solvers.layer_matrix import patches
from fxquant.solvers.scale_search import floor_scale, pick, round_to_grid

TIE = 1e-6
VALUES = 1 << 16  # sampled from a value that no layer reads

_Clamps = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class EasyQuant(LayerSolver):
    """See the module docstring.

    Attributes:
        low: Smallest candidate, in units of the present inverse scale.
        high: Largest candidate.
        candidates: How many.
        positions: Output positions a layer is compared at.
        rounds: Searches of a value's scale; before each but the first, the weight scales of its
            readers are searched.
    """

    low: float = 0.5
    high: float = 2.0
    candidates: int = 100
    positions: int = 1024
    rounds: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ConfigError(
                f"EasyQuant searches from {self.low} to {self.high}",
                why="the bounds are positive factors, the smaller one first",
                remedy="choose 0 < low <= high, such as 0.5 and 2",
            )
        for name in ("candidates", "positions", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"EasyQuant got {name}={getattr(self, name)}", remedy="use at least 1"
                )

    def choose_grid(self, problem: ValueProblem) -> QParams:
        """See LayerSolver."""
        if not problem.readers:
            return self._search_grid(problem, [_Plain(problem)])
        views = [
            _View.of(r.layer, r.float_operand, r.operand, self.positions) for r in problem.readers
        ]
        grid = self._search_grid(problem, views)
        for _ in range(1, self.rounds):
            refined = [replace(v, weight=self._reader_weight(v, grid)) for v in views]
            grid = self._search_grid(replace(problem, grid=grid), refined)
        return grid

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        """See LayerSolver. The losses are `1 - cosine`, mean over channels, before and after."""
        layer = problem.layer
        if layer.frozen:
            return LayerSolution(layer.start, layer.start_bias)
        x = [operands[0] for operands in problem.float_operands]
        x_q = [operands[0] for operands in problem.quantized_operands]
        view = _View.of(layer, x, x_q, self.positions)
        weight, losses = self._search_weight(view, view.patches)
        return LayerSolution(weight, layer.start_bias, losses)

    def _factors(self) -> Tensor:
        """Of the scale, which is the inverse of S; `[candidates]`."""
        return 1 / torch.linspace(self.low, self.high, self.candidates, dtype=torch.float64)

    def _search_grid(self, problem: ValueProblem, views: Sequence[_View | _Plain]) -> QParams:
        """The grid of a value with the best sum of cosines."""
        scale = float(problem.grid.scale)
        scales = [scale] + [max(scale * float(f), problem.finest) for f in self._factors()]
        grids = [_with_scale(problem.grid, s) for s in scales]
        costs = torch.stack([sum_costs([v.value_cost(g) for v in views]) for g in grids])
        best = int(pick(costs, TIE))
        return problem.grid if best == 0 else grids[best]

    def _search_weight(self, view: _View, x: Tensor) -> tuple[QTensor, tuple[float, float]]:
        """The best weight for every channel given patches x, and the loss before and after."""
        layer, start = view.layer, view.layer.start
        tried = start.qparams.scale.double() * self._factors()[:, None]  # [n, O]
        legal, _ = floor_scale(tried, layer.bias, layer.input, layer.output)
        costs = [view.channel_costs(x, start)]
        for scale in legal:
            weight = round_to_grid(layer.weight, scale, layer.weight_spec)
            costs.append(view.channel_costs(x, weight))
        table = torch.stack(costs)  # [1 + n, 2, O]
        best = pick(table, TIE)[None]  # [1, O]
        scales = torch.cat([start.qparams.scale.double()[None], legal])
        rounded = round_to_grid(layer.weight, scales.gather(0, best)[0], layer.weight_spec)
        kept = (best[0] == 0).reshape([-1] + [1] * (layer.weight.ndim - 1))
        codes = torch.where(kept, start.codes, rounded.codes)  # start need not be the nearest
        losses = table[0, 0].mean(), table[:, 0].gather(0, best).mean()
        return QTensor(codes, rounded.qparams), (float(losses[0]), float(losses[1]))

    def _reader_weight(self, view: _View, grid: QParams) -> Tensor:
        """The weight a reader of a value would get, `[O, ...]`."""
        if view.layer.frozen:
            return view.weight
        on_grid = replace(view, layer=replace(view.layer, input=grid))
        return self._search_weight(on_grid, round_value(view.patches, grid))[0].dequantize()


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A layer at sampled positions.

    Attributes:
        layer: The layer.
        patches: Its input under the quantized prefix, `[G, P, K]`.
        target: Its result in the float network, `[G, P, O/G]`.
        clamps: What its result is clamped at, one after the other; see _clamps.
        weight: Its weight while the input's grid is searched, `[O, ...]`.
    """

    layer: Layer
    patches: Tensor
    target: Tensor
    clamps: _Clamps
    weight: Tensor

    @classmethod
    def of(cls, layer: Layer, x: Sequence[Tensor], x_q: Sequence[Tensor], limit: int) -> _View:
        """Sample a layer's input under both prefixes."""
        clamps = _clamps(layer)
        target = _run(layer, sample_patches(layer, x, limit), layer.weight, layer.bias, clamps)
        return cls(layer, sample_patches(layer, x_q, limit), target, clamps,
                   layer.start.dequantize())  # fmt: skip

    def value_cost(self, grid: QParams) -> Tensor:
        """`1 - cosine` and relative squared error of the result if the input has a grid, `[2]`."""
        result = self._run(round_value(self.patches, grid), self.weight)
        return cost(result.flatten(), self.target.flatten(), 0)

    def channel_costs(self, x: Tensor, weight: QTensor) -> Tensor:
        """The same for every channel with a weight and patches x, `[2, O]`."""
        return cost(self._run(x, weight.dequantize()), self.target, 1).flatten(1)

    def _run(self, x: Tensor, weight: Tensor) -> Tensor:
        return _run(self.layer, x, weight, self.layer.start_bias, self.clamps)


def sample_patches(layer: Layer, chunks: Sequence[Tensor], limit: int) -> Tensor:
    """What the layer's weights are multiplied with at random positions of its result.

    The positions depend on nothing but the shapes: values of two networks are seen at the same.

    Args:
        layer: A weighted operator.
        chunks: Its input, in chunks of samples.
        limit: How many positions to take from all samples, at least one a chunk.

    Returns:
        `[G, P, K]` with groups, positions, and the values a result is summed from.
    """
    rng = torch.Generator().manual_seed(0)
    samples = sum(len(x) for x in chunks)
    taken = []
    for x in chunks:
        every = patches(layer, x)  # [S, OH, OW, ...], a view
        height, width = every.shape[1:3]
        quota = ceil(limit * len(x) / samples)
        chosen = torch.randperm(len(x) * height * width, generator=rng)[:quota].sort().values
        place = chosen // (height * width), chosen // width % height, chosen % width
        taken.append(every[place].reshape(len(chosen), layer.groups, -1))
    return torch.cat(taken).transpose(0, 1).contiguous()


def _clamps(layer: Layer) -> _Clamps:
    """Lower and upper bounds of a layer's result: its clamp, and that of each channel.

    On integers the grid of the result ends there (see ir/floats.py). Empty if something is added
    before the clamp.
    """
    clamp: Any = layer.node.kwargs.get("clamp")
    if clamp is None or meta.summands(layer.node):
        return ()
    shape = (layer.groups, 1, -1)
    own = tuple(b if b is None else b.reshape(shape) for b in channel_bounds(layer.node))
    return tuple(ends for ends in (tuple(clamp), own) if ends != (None, None))


def _run(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor, clamps: _Clamps) -> Tensor:
    """The layer's result on patches x, `[G, P, O/G]`."""
    matrix = weight.reshape(layer.groups, len(weight) // layer.groups, -1).transpose(1, 2)
    result = x @ matrix + bias.reshape(layer.groups, 1, -1)
    for low, high in clamps:
        result = result.clamp_(low, high)
    return result


class _Plain:
    """A value no layer reads, at sampled places."""

    def __init__(self, problem: ValueProblem) -> None:
        rng = torch.Generator().manual_seed(0)
        size = sum(v.numel() for v in problem.value)
        places = torch.randperm(size, generator=rng)[:VALUES]
        self.value, self.target = (
            torch.cat([v.flatten() for v in values])[places]
            for values in (problem.value, problem.float_value)
        )

    def value_cost(self, grid: QParams) -> Tensor:
        """`1 - cosine` and relative squared error on a grid, `[2]`."""
        return cost(round_value(self.value, grid), self.target, 0)


def cost(result: Tensor, target: Tensor, axis: int) -> Tensor:
    """`1 - cosine` and squared error over squared target along an axis, `[2, ...]`, float64."""
    both = (result * target).sum(axis).double()
    own, wanted = result.square().sum(axis).double(), target.square().sum(axis).double()
    norm = (own * wanted).sqrt()
    cosine = torch.where(norm > 0, both / norm, (own == wanted).double())
    error = (own - 2 * both + wanted).clamp(min=0) / torch.where(wanted > 0, wanted, 1.0)
    return torch.stack([1 - cosine, error])


def sum_costs(costs: Sequence[Tensor]) -> Tensor:
    """Costs of several readers as one, `[2, 1]`."""
    return torch.stack(list(costs)).sum(0)[:, None]


def round_value(value: Tensor, grid: QParams) -> Tensor:
    """A value on a per-tensor grid."""
    zero_point, dtype = int(grid.zero_point), grid.spec.dtype
    return fake_quantize(value, grid.scale, dtype.qmin - zero_point, dtype.qmax - zero_point)


def _with_scale(grid: QParams, scale: float) -> QParams:
    return QParams(grid.spec, torch.tensor(scale, dtype=torch.float32), grid.zero_point)
