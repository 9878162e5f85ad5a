"""Round to nearest with sequential bias correction.

Problem: rounding weights and inputs shifts the mean of every output channel; the shifts add up
over the layers, most of all in depthwise networks.

    w_q = s * round(w / s),  s per channel: covers max |w| at 8 bits, least squares below
    b' = b + E[conv(x; w) - conv(x_q; w_q)]       per output channel, before the clamp

`x` is the layer's input in the float network, `x_q` its input with everything before it already
quantized and corrected (the "full" correction: one layer after the other), so that each layer
also absorbs what is left of the errors before it.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.2 (empirical form, appendix D).
Symbols: w_q -> codes * scale, b' -> bias, E -> mean over samples and positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxquant.numerics.types import QTensor
from fxquant.solvers.base import LayerProblem, LayerSolution, LayerSolver
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
    """The second equation of the module docstring; leaves the codes as they are."""

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        """See LayerSolver."""
        layer = problem.layer
        return LayerSolution(layer.start, layer.bias + mean_shift(problem, layer.start))


def mean_shift(problem: LayerProblem, weight: QTensor) -> Tensor:
    """`E[float output - quantized output]` per channel without bias change, `[O]`."""
    layer, rounded = problem.layer, weight.dequantize()
    total = torch.zeros(len(layer.bias), dtype=torch.float64, device=rounded.device)
    count = 0
    for x, x_q in zip(problem.float_operands, problem.quantized_operands, strict=True):
        difference = layer.run(x, layer.weight, layer.bias) - layer.run(x_q, rounded, layer.bias)
        channels_last = difference.movedim(layer.channel_axis, -1)
        total += channels_last.reshape(-1, channels_last.shape[-1]).sum(0, dtype=torch.float64)
        count += channels_last.numel() // channels_last.shape[-1]
    return (total / max(count, 1)).float()
