"""Which floating-point type carries integer sums exactly, so that fast matrix kernels may add them.

A float32 holds every integer up to 2^24, a float64 up to 2^53. If the magnitudes of all products of
a sum add up to no more than that, every partial sum in every order is held, and nothing is ever
rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.numerics.accumulator import weight_magnitudes

_FLOAT32_INTEGERS = 1 << 24
_EXACT = ("none", "ieee")  # precisions of oneDNN that do not shorten float32 operands


def carrier(difference: Tensor, weight: Tensor) -> torch.dtype:
    """float32 where sums of `difference * weight` are provably exact in it, else float64.

    Args:
        difference: Codes less their zero point, any shape.
        weight: Integer codes, output channel first.
    """
    if difference.numel() == 0 or not _float32_is_ieee(difference.device):  # or no data: meta
        return torch.float64
    low, high = difference.aminmax()
    largest = max(abs(int(low)), abs(int(high)))
    magnitude = int(weight_magnitudes(weight).max())
    return torch.float32 if largest * magnitude <= _FLOAT32_INTEGERS else torch.float64


def _float32_is_ieee(device: torch.device) -> bool:
    """Whether float32 products are computed as such: users may allow TF32 or bfloat16."""
    onednn: Any = torch.backends.mkldnn  # whose type stubs lack both
    allowed = onednn.conv.fp32_precision, onednn.matmul.fp32_precision
    return device.type == "cpu" and all(precision in _EXACT for precision in allowed)
