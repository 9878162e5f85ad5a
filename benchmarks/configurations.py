"""Configurations of the accuracy tables by name: presets, and 4 bits on average.

A mixed one spends as much on the weights as W4A8 or W4A4 does and differs in who chooses the
widths: coding lengths with each mapping, or measured sensitivities with the exact solution.
"""

from __future__ import annotations

from torch import Tensor, nn

import fxquant
from fxquant.recipes import CodingLength, Method, Sensitivity, allocate_bits

PRESETS = ("W8A8", "W7A7", "W6A6", "W4A8", "W4A4", "W3A8", "W3A3", "W2A8", "W2A4")
AVERAGE = 4.0
_METHODS: dict[str, Method] = {
    "greedy": CodingLength("greedy"),
    "rate": CodingLength("rate"),
    "cluster": CodingLength("cluster"),
    "milp": Sensitivity(),
}
MIXED = tuple(f"M4A{bits}-{method}" for bits in (8, 4) for method in _METHODS)
CONFIGURATIONS = (*PRESETS, *MIXED)


def configuration(name: str, model: nn.Module, samples: Tensor) -> fxquant.Config:
    """The configuration of a name; mixed ones are computed for the model.

    Args:
        name: One of `CONFIGURATIONS`.
        model: The network.
        samples: Calibration data, `[S, C, H, W]`, for methods that measure.
    """
    if name in PRESETS:
        return getattr(fxquant, name)
    widths, method = name.split("-")
    base = fxquant.W4A8 if widths == "M4A8" else fxquant.W4A4
    allocation = allocate_bits(
        model, samples[:1], AVERAGE, method=_METHODS[method], data=[samples], config=base,
        progress=False,
    )  # fmt: skip
    return allocation.config
