"""Round to nearest with sequential bias correction.

Problem: rounding weights and inputs shifts the mean of every output channel; the shifts add up
over the layers, most of all in depthwise networks.

    w_q = s * round(w / s),  s per channel: covers max |w| at 8 bits, least squares below
    b' = b + E[y - y_q | open],  y = clamp(conv(x; w) + b),  y_q = clamp(conv(x_q; w_q) + b)

per output channel, over the positions where the clamp is open for `y` or for `y_q`: a bias shows
nowhere else. Before the clamp (`behind_clamp=False`, as published:
`E[conv(x; w) - conv(x_q; w_q)]`) errors count that no layer sees, and the shift by them harms all
others: clipped inputs move results far below zero most of all. `x` is the layer's input in the
float network, `x_q` its input with everything before it already quantized and corrected (the
"full" correction: one layer after the other), so that each layer also absorbs what is left of the
errors before it.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.2 (empirical form, appendix D). The mean behind the clamp is ours.
Symbols: w_q -> codes * scale, b' -> bias, E -> mean over samples and positions,
open -> is_open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxquant.ir.floats import clamped
from fxquant.numerics.types import QTensor
from fxquant.solvers.base import Layer, LayerProblem, LayerSolution, LayerSolver
from fxquant.solvers.scale_search import floor_scale, max_scale, round_to_grid, search_scale


@dataclass(frozen=True, slots=True)
class RoundToNearest(LayerSolver):
    """See the module docstring.

    Attributes:
        scale: "max" covers every weight, "mse" has the least squared rounding error; None takes
            the scales as they are (by default "max" at 8 bits, "mse" below).
    """

    scale: Literal["max", "mse"] | None = None

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        """See LayerSolver."""
        layer = problem.layer
        if layer.frozen:
            return LayerSolution(layer.start, layer.start_bias)
        scale = layer.start.qparams.scale.double()
        if self.scale is not None:
            search = {"max": max_scale, "mse": search_scale}[self.scale]
            wanted = search(layer.weight, layer.weight_spec)
            scale, _ = floor_scale(wanted, layer.bias, layer.input, layer.output)
        weight = round_to_grid(layer.weight, scale, layer.weight_spec)
        return LayerSolution(weight, layer.start_bias)


@dataclass(frozen=True, slots=True)
class BiasCorrection(LayerSolver):
    """The second equation of the module docstring; leaves the codes as they are.

    Attributes:
        behind_clamp: Match means behind the layer's activation, not before it.
    """

    behind_clamp: bool = True

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        """See LayerSolver."""
        layer = problem.layer
        shift = mean_shift(problem, layer.start, self.behind_clamp)
        return LayerSolution(layer.start, layer.bias + shift)


def mean_shift(problem: LayerProblem, weight: QTensor, behind_clamp: bool = True) -> Tensor:
    """The second equation of the module docstring: what it adds to the float bias, `[O]`."""
    layer, rounded = problem.layer, weight.dequantize()
    total = torch.zeros(len(layer.bias), dtype=torch.float64, device=rounded.device)
    count = torch.zeros_like(total)
    for x, x_q in zip(problem.float_operands, problem.quantized_operands, strict=True):
        y, y_q = layer.run(x, layer.weight, layer.bias), layer.run(x_q, rounded, layer.bias)
        is_open = torch.ones_like(y, dtype=torch.bool)
        if behind_clamp and layer.node.kwargs.get("clamp") is not None:
            before, before_q = y.clone(), y_q.clone()
            y, y_q = clamped(layer.node, y), clamped(layer.node, y_q)
            is_open = (y == before) | (y_q == before_q)
        total += _per_channel(layer, y - y_q)
        count += _per_channel(layer, is_open)
    return (total / count.clamp(min=1)).float()


def _per_channel(layer: Layer, value: Tensor) -> Tensor:
    """Sums over samples and positions, `[O]`, float64."""
    channels_last = value.movedim(layer.channel_axis, -1)
    return channels_last.reshape(-1, channels_last.shape[-1]).sum(0, dtype=torch.float64)
