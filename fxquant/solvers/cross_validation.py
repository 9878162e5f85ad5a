"""How strongly a layer's weights are pulled towards their float values, by cross-validation.

What the samples do not tell is left to a ridge towards the float weights. How strong it must be
differs by orders of magnitude between a depthwise layer (9 weights an output, thousands of
positions) and a classifier (more inputs than images): too weak, and the weights learn the samples
by heart; too strong, and they cannot make up for the errors of the prefix. So one part of the
samples judges the codes found with the other, for the dampings lambda in `DAMPINGS`:

    min over lambda:   sum over parts k   L_k( solve(E_rest + lambda I, C_rest + lambda v) )

This is our own choice; the publications fix lambda. Parts are whole samples, since neighbouring
positions of one image know too much of each other.

Symbols: see layer_matrix.py; lambda -> damping * mean diagonal of E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor

from fxquant.solvers.layer_matrix import LayerMatrix, merged

FOLDS = 2
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_FIRST = DAMPINGS.index(0.1)
_WIDEST = 1536  # inputs of layers worth the time
_OF_WIDE_LAYERS = 3.0  # what the widest of the others get


def choose_damping(parts: Sequence[LayerMatrix], solve: Callable[[LayerMatrix], Tensor]) -> float:
    """The damping whose weights, found with some samples, are best on the others.

    Starts at 0.1 and goes on in the direction that gets better.

    Args:
        parts: The moments of each part of the samples; of a single one the answer is the largest.
        solve: From a damped problem to weights on a grid, `[G, N, M]`.
    """
    if len(parts) == 1:
        return DAMPINGS[-1]
    if parts[0].gram.shape[1] > _WIDEST:
        return _OF_WIDE_LAYERS
    folds = [(merged([p for p in parts if p is not part]), part) for part in parts]

    @cache
    def loss(index: int) -> float:
        if not 0 <= index < len(DAMPINGS):
            return math.inf
        weights = [solve(rest.damped(DAMPINGS[index])) for rest, _ in folds]
        return sum(float(part.loss(w).sum()) for (_, part), w in zip(folds, weights, strict=True))

    best = _FIRST
    for step in (1, -1):
        while loss(best + step) < loss(best):
            best += step
    return DAMPINGS[best]
