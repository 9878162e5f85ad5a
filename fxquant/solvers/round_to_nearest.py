"""Round to nearest with sequential bias correction: the default at 8 bits.

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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.numerics.types import QTensor
from fxquant.ops.conv import linear
from fxquant.solvers.base import Layer, UnitProblem, UnitSolution
from fxquant.solvers.scale_search import floor_scale, max_scale, round_to_grid, search_scale

Chunks = Sequence[Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class RoundToNearest:
    """See the module docstring.

    Attributes:
        bias_correction: Correct the channel means.
    """

    bias_correction: bool = True

    def solve(self, problem: UnitProblem, rng: torch.Generator) -> UnitSolution:
        """See Solver."""
        weights: dict[str, QTensor] = {}
        biases: dict[str, Tensor] = {}
        notes: dict[str, str] = {}
        for name, layer in problem.layers.items():
            quantized, raised = quantize_weight(layer)
            weights[name], biases[name] = quantized, layer.bias
            if raised:
                notes[name] = (
                    f"weight scale of {raised} channel(s) raised to keep the bias in int32"
                )
            if self.bias_correction:
                shift = _mean_shift(layer, quantized, problem.float_inputs[name],
                                    problem.quantized_inputs[name])  # fmt: skip
                biases[name] = layer.bias + shift
        return UnitSolution(weights, biases, notes=notes)


def quantize_weight(layer: Layer) -> tuple[QTensor, int]:
    """Round a layer's weight on its best scales; how many scales were raised."""
    spec = layer.weight_spec
    search = max_scale if spec.dtype.bits == 8 else search_scale
    scale, raised = floor_scale(search(layer.weight, spec), layer.bias, layer.input, layer.output)
    return round_to_grid(layer.weight, scale, spec), raised


def _mean_shift(layer: Layer, weight: QTensor, floats: Chunks, quantized: Chunks) -> Tensor:
    """`E[float output - quantized output]` per channel, `[O]`."""
    rounded = weight.dequantize()
    axis = -1 if layer.node.target is linear else 1
    total, count = torch.zeros(len(layer.bias), dtype=torch.float64), 0
    for x, x_q in zip(floats, quantized, strict=True):
        difference = layer.run(x, layer.weight, layer.bias) - layer.run(x_q, rounded, layer.bias)
        channels_last = difference.movedim(axis, -1)
        total += channels_last.reshape(-1, channels_last.shape[-1]).sum(0, dtype=torch.float64)
        count += channels_last.numel() // channels_last.shape[-1]
    return (total / max(count, 1)).float()
