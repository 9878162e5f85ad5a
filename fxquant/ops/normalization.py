"""Batch norm as it comes from the model; fusion folds it away before quantization."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """Batch norm with running statistics, channels on axis 1."""
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
