"""The exact allocation: a mixed-integer linear program.

    minimize    sum_l sum_b  loss[l, b] x[l, b]             x[l, b] = 1: layer l gets width b
    subject to  sum_b x[l, b] = 1                           for every layer
                sum_l sum_b cost[l] b x[l, b] <= budget

Losses are assumed to add up, which holds to first order for noise from independent roundings.

Source: Hubara et al., "Accurate Post Training Quantization With Small Calibration Sets", ICML 2021.
Solved by HiGHS (scipy.optimize.milp).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fxquant.recipes.allocation import BitProblem, fill, greedy

_TOLERANCE = 2e-6  # relative violation of the budget HiGHS may leave


def solve_milp(problem: BitProblem, time_limit: float = 60.0) -> tuple[int, ...]:
    """The assignment of least loss, or the best one found in time; never worse than `greedy`.

    Args:
        problem: The layers and their losses.
        time_limit: Seconds.
    """
    found = [greedy(problem)]
    for margin in (0.0, _TOLERANCE):  # a violation within HiGHS's tolerance needs a second try
        bits = _solve(problem, margin, time_limit)
        if bits is not None and problem.fits(bits):
            found.append(fill(problem, bits))
            break
    return min(found, key=problem.loss)


def _solve(problem: BitProblem, margin: float, time_limit: float) -> tuple[int, ...] | None:
    """One call of HiGHS; None if it found nothing in time."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to load, seldom needed
    from scipy.sparse import csr_array

    widths, losses = np.array(problem.candidates), problem.prediction.losses
    layers, count = losses.shape
    costs = (problem.costs[:, None] * widths / problem.budget).ravel()
    rows = np.repeat(np.arange(layers), count)
    one_each = csr_array((np.ones(layers * count), (rows, np.arange(layers * count))))
    allowed = widths >= problem.smallest[:, None]
    upper: Any = allowed.ravel().astype(np.float64)
    result = milp(
        losses.ravel() / max(float(np.abs(losses[allowed]).max()), np.finfo(np.float64).tiny),
        integrality=np.ones(layers * count),
        bounds=Bounds(0, upper),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_array(costs[None]), -np.inf, 1 - margin),
        ],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    chosen = result.x.reshape(layers, count).argmax(1)
    return tuple(int(b) for b in widths[chosen])
