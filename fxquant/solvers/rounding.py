"""Ways to let weight codes move during reconstruction.

A rounding turns a float weight in units of its step, `ratio = w / s` `[O, ...]`, and one trainable
variable per weight into codes. All share the forward rule of the device: codes are integers in
`[qmin, qmax]` once training ends (`hard`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.numerics.types import IntType
from fxquant.solvers.fake_quantize import round_through

_EDGE = 0.45  # how far from its code a latent starts at most


def near(ratio: Tensor, codes: Tensor) -> Tensor:
    """The value nearest to `ratio` that rounds to the given codes."""
    return torch.maximum(torch.minimum(ratio, codes + _EDGE), codes - _EDGE)


class Rounding(ABC):
    """From a trainable variable to codes."""

    @abstractmethod
    def start(self, ratio: Tensor, codes: Tensor, dtype: IntType, rng: torch.Generator) -> Tensor:
        """The variable that yields the given codes.

        Args:
            ratio: Float weight in steps.
            codes: Codes to start from, float.
            dtype: Range of the codes.
            rng: For random starts.
        """

    @abstractmethod
    def codes(self, ratio: Tensor, variable: Tensor, dtype: IntType) -> Tensor:
        """Codes in training, differentiable in the variable."""

    def hard(self, ratio: Tensor, variable: Tensor, dtype: IntType) -> Tensor:
        """Codes after training: integers, as floats."""
        return self.codes(ratio, variable, dtype)

    def penalty(self, variable: Tensor, progress: float) -> Tensor | None:
        """Regularizer at a fraction of the training, or None."""
        return None


@dataclass(frozen=True, slots=True)
class StraightThrough(Rounding):
    """The latent weight itself moves: `q = clip(round(v))`, straight-through gradient.

    Bengio et al., 2013; for calibration: Hubara et al. ("AdaQuant"), ICML 2021.
    """

    def start(self, ratio: Tensor, codes: Tensor, dtype: IntType, rng: torch.Generator) -> Tensor:
        """As near to the float weight as its code allows."""
        return near(ratio, codes)

    def codes(self, ratio: Tensor, variable: Tensor, dtype: IntType) -> Tensor:
        """See Rounding."""
        return round_through(variable, dtype.qmin, dtype.qmax)
