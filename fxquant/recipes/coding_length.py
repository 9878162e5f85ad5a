"""Lossy coding length of weights: how many bits a layer's filters are worth.

The filters of a layer are m vectors in R^n, the columns of V. Coded as a zero-mean Gaussian source
up to a mean squared error eps^2 per vector they take, with the code book included,

    L(V) = (m + n)/2 * log2 det(I + n/(m eps^2) V V^T)    bits

By Sylvester's identity V^T V may stand for V V^T, so the smaller Gram matrix is taken.

L grows with the size of the layer and, through eps, with the scale of its weights. Compared is
therefore the rate at a relative distortion c: bits per weight

    rho = L / (m n)     with  eps^2 = c |V|^2 / m

Rounding to b bits instead of rho leaves, by the 6 dB a bit of rate-distortion theory, a relative
error of about `c 4^(rho - b)`: that is the predicted loss of a layer.

Sources: Ma, Derksen, Hong, Wright, "Segmentation of Multivariate Mixed Data via Lossy Data Coding
and Compression", TPAMI 2007; Diao, Li, Xu, Hao, "Attention Round for Post-Training
Quantization", 2022, for the use of L to choose bit widths. The latter's mapping from lengths to
widths is not known to us: the three of `allocation.py` are ours.
Symbols: V -> vectors, eps^2 -> distortion (absolute), c -> distortion (relative), rho -> rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import ConfigError, NumericsError
from fxquant.recipes.allocation import BitProblem, Method, Prediction, by_cluster, by_rate, greedy
from fxquant.recipes.network import Network


def coding_length(vectors: Tensor, distortion: float) -> float:
    """L of the module docstring, in bits.

    Args:
        vectors: V, `[n, m]`: m vectors in R^n.
        distortion: eps^2, positive.

    Raises:
        NumericsError: The vectors are not finite.
    """
    v = vectors.detach().double()
    n, m = v.shape
    gram = v @ v.T if n <= m else v.T @ v
    matrix = torch.eye(len(gram), dtype=v.dtype, device=v.device) + gram * (n / (m * distortion))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise NumericsError(
            "the coding length of a weight is not finite",
            why="the weight has NaN or infinite values, or the distortion is too small",
            remedy="check the checkpoint, or use a larger distortion",
        )
    return (m + n) * float(factor.diagonal().log2().sum())  # log2 det = 2 sum log2 diag


def coding_rate(weight: Tensor, distortion: float) -> float:
    """rho of the module docstring: bits per weight; 0 for a weight of zeros.

    Args:
        weight: `[O, ...]`, a filter an output channel.
        distortion: c, positive.
    """
    vectors = weight.detach().double().flatten(1).T  # [n, m]
    power = float(vectors.square().sum())
    if power == 0:
        return 0.0
    return coding_length(vectors, distortion * power / vectors.shape[1]) / vectors.numel()


_MAPPINGS = {"cluster": by_cluster, "rate": by_rate, "greedy": greedy}


@dataclass(frozen=True, slots=True)
class CodingLength(Method):
    """Bit widths from the weights alone, in seconds; see the module docstring.

    Attributes:
        mapping: From rates to widths: "greedy" (least predicted loss a bit saved), "rate"
            (reverse water-filling, rounded) or "cluster" (one width a cluster of layers); see
            `allocation.py`.
        distortion: c.
    """

    mapping: Literal["greedy", "rate", "cluster"] = "greedy"
    distortion: float = 0.1

    def __post_init__(self) -> None:
        if self.mapping not in _MAPPINGS:
            raise ConfigError(
                f"mapping={self.mapping!r} is unknown", remedy=f"choose one of {list(_MAPPINGS)}"
            )
        if not self.distortion > 0:
            raise ConfigError(
                f"a distortion of {self.distortion} has no coding length",
                remedy="use a relative error such as 0.01",
            )

    def predict(
        self, network: Network, candidates: tuple[int, ...], data: Any, progress: bool
    ) -> Prediction:
        """See Method; needs no data."""
        rates = np.array([coding_rate(network.tensor(w), self.distortion) for w in network.free])
        losses = self.distortion * 4.0 ** (rates[:, None] - np.array(candidates))
        return Prediction(losses, rates)

    def choose(self, problem: BitProblem) -> tuple[int, ...]:
        """See Method."""
        return _MAPPINGS[self.mapping](problem)
