"""Two measures of how close a quantized value is to its original, over batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Similarity:
    """Of a quantized value to its original.

    Attributes:
        sqnr: Signal-to-quantization-noise ratio in dB; infinite if equal.
        cosine: Cosine of the angle between both, as vectors.
    """

    sqnr: float
    cosine: float


@dataclass(slots=True)
class Sums:
    """Running sums over batches: of squares, of the squared difference, of the product."""

    signal: float = 0.0
    quantized: float = 0.0
    noise: float = 0.0
    product: float = 0.0

    def add(self, reference: Tensor, value: Tensor) -> None:
        """Take in a batch of both, of the same shape."""
        a, b = reference.double().flatten(), value.double().flatten()
        self.signal += float(a @ a)
        self.quantized += float(b @ b)
        self.noise += float((a - b) @ (a - b))
        self.product += float(a @ b)

    def similarity(self) -> Similarity:
        """Over everything seen."""
        norm = math.sqrt(self.signal * self.quantized)
        cosine = self.product / norm if norm > 0 else float(self.noise == 0)
        if self.noise == 0:
            return Similarity(math.inf, cosine)
        sqnr = 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        return Similarity(sqnr, cosine)
